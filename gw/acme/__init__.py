"""Certificates from an authority (ACME), for the control server and the relay.

    authority.py     account, order, certificate
    challenges.py    the three ways to prove a name
    renewal.py       in good time, again after failures
    proofs.py        proofs as files, for services of many processes

Ref: RFC 8555, RFC 8737
"""
