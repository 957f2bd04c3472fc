import pytest

from orchestrator.plan.dense import DenseModel
from orchestrator.plan.published import dense_models


@pytest.mark.parametrize(
    ("name", "parameters", "gigaflops"),
    [
        ("llama-3.1-8b", 8_030_261_248, 51.5),
        ("llama-3.1-70b", 70_553_706_496, 449),
        ("llama-3.1-405b", 405_853_388_800, 2524),
    ],
)
def test_counts_of_llama(name: str, parameters: int, gigaflops: float) -> None:
    """transformers' own counts; FLOPs per token at 8192 tokens as in published tables."""
    model = dense_models()[name]
    assert model.parameters == parameters
    assert model.flops_per_token(8192) / 1e9 == pytest.approx(gigaflops, rel=1e-3)


def test_flops_are_six_per_matrix_parameter_and_attention() -> None:
    model = DenseModel(
        vocab_size=10, hidden_size=8, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, head_dim=2,
        intermediate_size=16,
    )  # fmt: skip
    layer = 8 * 8 + 2 * 4 * 8 + 8 * 8 + 3 * 16 * 8
    assert model.matmul_parameters == 3 * layer + 10 * 8
    assert model.parameters == model.matmul_parameters + 10 * 8 + 3 * 2 * 8 + 8
    assert model.flops_per_token(100) == 6 * model.matmul_parameters + 3 * 6 * 4 * (2 + 2) * 50
    assert model.flops_per_token(100, causal=False) == 6 * model.matmul_parameters + 3 * 6 * 4 * (2 + 2) * 100


def test_groups_must_divide_and_lengths_be_positive() -> None:
    base = dense_models()["llama-3.1-8b"].model_dump(include=set(DenseModel.model_fields))
    with pytest.raises(ValueError, match=r"num_key_value_heads \(5\) must divide num_attention_heads \(32\)"):
        DenseModel.model_validate(base | {"num_key_value_heads": 5})
    with pytest.raises(ValueError, match="at least 1, got 0"):
        dense_models()["llama-3.1-8b"].flops_per_token(0)
