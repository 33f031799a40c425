"""The OpenAPI document says what there is, and the repository's copy says the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gw.control.admin import TABLE
from gw.control.api.openapi import document, page
from gw.control.scopes import SCOPES
from gw.control.web import api_document

KEPT = Path(__file__).parents[3] / "docs" / "openapi.json"


def test_the_kept_document_is_the_served_one() -> None:
    """`make generated` writes it anew."""
    assert json.loads(KEPT.read_bytes()) == json.loads(api_document())


def test_every_operation_is_described_once_and_asks_for_a_key() -> None:
    made = document(TABLE.operations)
    described = [(method.upper(), path) for path, methods in made["paths"].items() for method in methods]
    assert sorted(described) == sorted((each.method, each.path) for each in TABLE.operations)
    names = [each["operationId"] for methods in made["paths"].values() for each in methods.values()]
    assert len(names) == len(set(names))
    without = [each.path for each in TABLE.operations if not each.scope]
    assert without == ["/api/v2/oauth/token"]
    assert all(each.scope in (*SCOPES, "any", "") for each in TABLE.operations)


def test_every_reference_leads_somewhere() -> None:
    made = document(TABLE.operations)

    def references(value: Any) -> set[str]:
        if isinstance(value, dict):
            own = {value["$ref"]} if "$ref" in value else set()
            return own.union(*map(references, value.values()))
        return set[str]().union(*map(references, value)) if isinstance(value, list) else set()

    there = {f"#/components/schemas/{name}" for name in made["components"]["schemas"]}
    assert references(made) <= there


def test_the_page_names_every_call() -> None:
    shown = page(TABLE.operations)
    assert all(each.path in shown for each in TABLE.operations)
