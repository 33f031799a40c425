"""A person at a browser: follows redirects, keeps cookies, fills in the provider's forms and presses our button.

python browser.py URL NAME [yes|no|look]      prints the last page and its status

look: stop at the page that asks whose device it is.
"""

from __future__ import annotations

import html
import re
import sys
import urllib.error
import urllib.request
from http.cookiejar import CookieJar
from urllib.parse import urlencode, urljoin

QUESTION = "Is this your device?"


class Browser:
    def __init__(self) -> None:
        self._opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(CookieJar()))
        self.url, self.status, self.text = "", 0, ""

    def open(self, url: str, form: dict[str, str] | None = None) -> None:
        data = urlencode(form).encode() if form is not None else None
        try:
            answer = self._opener.open(url, data, timeout=30)
        except urllib.error.HTTPError as error:
            answer = error
        with answer:
            self.url, self.status, self.text = answer.url, answer.status, answer.read().decode()

    def submit(self, **filled: str) -> None:
        """The form of the page, its hidden fields as they are."""
        form = re.search(r'<form[^>]*action="([^"]*)"', self.text)
        assert form is not None, self.text
        hidden = re.findall(r'<input[^>]*type="hidden"[^>]*>', self.text)
        fields = {}
        for each in hidden:
            name, value = re.search(r'name="([^"]*)"', each), re.search(r'value="([^"]*)"', each)
            if name is not None:
                fields[name[1]] = html.unescape(value[1]) if value is not None else ""
        self.open(urljoin(self.url, html.unescape(form[1])), fields | filled)


def log_in(url: str, name: str, answer: str = "yes") -> Browser:
    """Open an AuthURL as this person; returns the browser at the last page."""
    browser = Browser()
    browser.open(url)
    for _ in range(6):
        if 'name="login"' in browser.text:
            browser.submit(login=name, password="x")
        elif 'name="prompt" value="consent"' in browser.text:
            browser.submit()
        elif QUESTION in browser.text and answer != "look":
            browser.submit(answer=answer)
        else:
            break
    return browser


if __name__ == "__main__":
    last = log_in(*sys.argv[1:])
    print(last.status, last.text)
