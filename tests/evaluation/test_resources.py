"""The size of VidTwin's latents and the cost of a generator on them: the paper's arithmetic, and counts by hand."""

import pytest

from vidmotion.evaluation import resources


def test_numbers_and_rates_are_those_of_the_paper_and_its_rounding():
    # (h_S w_S n_q d_S + f (h_D + w_D) d_D) / (3 * 16 * 224^2)
    expected = {
        "1": (7 * 7 * 16 * 4 + 16 * 14 * 8, "0.20"),
        "2": (7 * 7 * 16 * 4 + 16 * 8 * 16, "0.22"),
        "3": (7 * 7 * 12 * 4 + 16 * 14 * 8, "0.17"),
        "released": (7 * 7 * 16 * 8 + 16 * 14 * 8, "0.33"),
        "0.11": (7 * 7 * 8 * 4 + 16 * 8 * 8, "0.11"),
        "0.16": (4 * 4 * 16 * 8 + 16 * 14 * 8, "0.16"),
        "0.48": (7 * 7 * 16 * 12 + 16 * 8 * 16, "0.48"),
    }
    found = {s.name: (s.numbers, f"{100 * s.rate:.2f}") for s in resources.settings()}
    assert found == expected


def test_tokens():
    # 8 x 4 x 4 + 8 x 7; 2 x 14 x 14; 2 x 256 + 14 x 16; 4 x 14 x 14
    assert list(resources.TOKENS.values()) == [128 + 56, 392, 736, 784]


def test_costs_of_the_pseudo_dit():
    tokens, width, layers = 184, 512, 6
    cost = resources.cost(tokens)
    # Each layer has four projections, two feed-forward matrices, their biases and two norms.
    assert cost.parameters == layers * (12 * width**2 + 13 * width) == 18_914_304
    assert cost.ffn_parameters == 12_610_560  # the paper's figure
    assert cost.ffn_flops == 2 * tokens * 12_610_560
    products = layers * (12 * width**2 * tokens + 2 * tokens**2 * width)
    assert cost.forward_flops == pytest.approx(2 * products, rel=0.01)
    # The backward pass is twice the forward pass, less the gradient of the input; Adam takes some more.
    assert cost.step_flops == pytest.approx(6 * products, rel=0.03)
    # At the least, the parameters, both moments and the gradients are held.
    assert 4 * 4 * cost.parameters * 0.9 < cost.step_bytes < 2 * 4 * 4 * cost.parameters
