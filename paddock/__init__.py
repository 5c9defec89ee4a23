"""Paddock: a declarative model zoo that builds and serves language-model engines."""
