"""The decoding options of the front doors: command line, page, service."""

from __future__ import annotations

import argparse
import inspect

import pytest

import generate_caption
from generate_caption import OPTIONS, SAMPLING, add_options, clash, decoding_options
from helpers.decoding import decode


def parsed(*words: str) -> dict:
    parser = argparse.ArgumentParser(exit_on_error=False)
    add_options(parser, "How.")
    return vars(parser.parse_args(words))


def test_nothing_given_asks_for_nothing() -> None:
    assert decoding_options(parsed()) == {} and not clash(parsed())


@pytest.mark.parametrize(
    ("words", "options"),
    [
        (["--beam_size", "7", "--length_penalty", "-0.5"], {"beam_size": 7, "length_penalty": -0.5}),
        (["--beam_size", "1"], {"method": "greedy"}),
        (["--top_k", "20", "--temperature", ".7"], {"method": "sample", "top_k": 20, "temperature": 0.7}),
        (["--repetition_penalty", "2", "--prompt", "a man"], {"repetition_penalty": 2.0, "prompt": "a man"}),
        (["--beam_size", "1", "--top_p", "1"], {"method": "sample", "beam_size": 1, "top_p": 1.0}),
    ],
)
def test_the_options_ask_for_their_method(words, options) -> None:
    assert decoding_options(parsed(*words)) == options


def test_a_seed_makes_draws_repeatable() -> None:
    first, second = (decoding_options({"top_k": 3, "seed": 2**63 - 1})["generator"] for _ in range(2))
    assert first.initial_seed() == second.initial_seed() == 2**63 - 1 and first is not second
    assert "generator" not in decoding_options({"top_k": 3, "seed": None})


@pytest.mark.parametrize("name", SAMPLING)
def test_searching_and_drawing_clash(name) -> None:
    assert clash({"beam_size": 2, name: 1}) and not clash({"beam_size": 1, name: 1})
    assert not clash({"beam_size": 2, name: None})


@pytest.mark.parametrize(
    "words",
    [
        ["--beam_size", "0"], ["--beam_size", "2.5"], ["--top_p", "0"], ["--top_p", "1.01"], ["--temperature", "nan"],
        ["--length_penalty", "11"], ["--repetition_penalty", "0"], ["--length_penalty", "much"], ["--max_length", "0"],
    ],
)  # fmt: skip
def test_numbers_out_of_bounds_are_refused(words) -> None:
    with pytest.raises(argparse.ArgumentError, match="expected"):
        parsed(*words)


def test_each_is_known_to_decoding_and_to_the_command_line() -> None:
    assert set(OPTIONS) <= {*inspect.signature(decode).parameters}
    assert set(OPTIONS) <= {action.dest for action in generate_caption.parser()._actions}
