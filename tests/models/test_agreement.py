"""A bridge that is not the model it was made from is refused, whatever it drops or adds."""

import pytest
import torch
from helpers.checkpoints import save_checkpoint
from transformers import AutoModelForCausalLM

from igap import load_model
from igap.models import agreement
from igap.models.load import read_header


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
@pytest.mark.parametrize("processing", ["processed", "raw"])
def test_an_attention_that_the_bridge_scales_and_the_model_does_not_is_refused(tmp_path, dtype, processing):
    save_checkpoint("gpt2", 3, tmp_path, scale_attn_weights=False)
    with pytest.raises(ValueError, match=r"whose logits change in TransformerLens' bridge \(") as refused:
        load_model(str(tmp_path), dtype=dtype, processing=processing)
    assert "\n" not in str(refused.value)
    assert ("Try model.processing=raw" in str(refused.value)) == (processing == "processed")


@pytest.mark.parametrize("setting", ["scale_attn_by_inverse_layer_idx", "reorder_and_upcast_attn"])
def test_what_the_bridge_keeps_is_not_refused(tmp_path, setting):
    save_checkpoint("gpt2", 3, tmp_path, **{setting: True})
    load_model(str(tmp_path))


@pytest.fixture(scope="module")
def reference_and_model(checkpoint):
    """A small Llama in float32, as Hugging Face's own and as a bridge."""
    folder = checkpoint("llama")
    own = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    return agreement.reference(own, 24, "own"), load_model(str(folder), processing="raw")


def edited(model, change):
    """Whether a bridge whose output a hook changes is refused."""
    wanted, bridge = model
    try:
        with bridge.hooks(fwd_hooks=[("unembed.hook_out", lambda logits, hook: change(logits))]):
            agreement.check(bridge, wanted, "edited", "raw")
    except ValueError:
        return True
    return False


def test_a_softcap_or_a_scale_too_many_is_seen_and_a_constant_is_none(reference_and_model):
    assert edited(reference_and_model, lambda logits: 30 * torch.tanh(logits / 30))
    assert edited(reference_and_model, lambda logits: logits * 1.001)
    assert not edited(reference_and_model, lambda logits: logits + 3)  # moves no difference of two logits
    assert not edited(reference_and_model, lambda logits: logits)


def test_what_all_logits_have_in_common_loosens_nothing(checkpoint, reference_and_model):
    """As those of GPT-2, which are tens of logits below 0."""
    own = AutoModelForCausalLM.from_pretrained(checkpoint("llama"), attn_implementation="eager").eval()
    own.lm_head.register_forward_hook(lambda module, inputs, logits: logits + 40)
    lifted, (wanted, _) = agreement.reference(own, 24, "lifted"), reference_and_model
    # One rounding of a number below 64 in float32.
    assert (lifted.bound < wanted.bound + 64 * torch.finfo(torch.float32).eps).all()


def test_columns_that_are_infinite_in_both_are_left_out_and_the_others_compared(checkpoint, reference_and_model):
    def padded(logits):
        return torch.cat([logits[..., :1], torch.full_like(logits[..., 1:2], -torch.inf), logits[..., 2:]], -1)

    own = AutoModelForCausalLM.from_pretrained(checkpoint("llama"), attn_implementation="eager").eval()
    own.lm_head.register_forward_hook(lambda module, inputs, logits: padded(logits))
    model = agreement.reference(own, 24, "padded"), reference_and_model[1]
    assert not edited(model, padded)
    assert edited(model, lambda logits: padded(1.001 * logits))


def test_logits_that_are_not_finite_are_no_agreement(reference_and_model):
    assert edited(reference_and_model, lambda logits: logits / 0)


def test_the_difference_and_its_bound_are_in_the_message(reference_and_model):
    wanted, bridge = reference_and_model
    with (
        bridge.hooks(fwd_hooks=[("unembed.hook_out", lambda logits, hook: 2 * logits)]),
        pytest.raises(
            ValueError, match=r"they differ by \d\.?\d* \(root mean square; rounding in float32 gives at mos"
        ),
    ):
        agreement.check(bridge, wanted, "twice", "raw")


def test_the_prompt_is_longer_than_a_sliding_window_and_not_than_the_model_allows(tmp_path):
    from transformers import MistralConfig, MistralForCausalLM

    sizes = {"hidden_size": 16, "intermediate_size": 8, "num_attention_heads": 2, "num_key_value_heads": 1}
    for window, n_ctx, length in [(40, 64, 48), (40, 44, 44), (4096, 8192, 24), (None, 8, 8)]:
        config = MistralConfig(
            vocab_size=24, num_hidden_layers=1, sliding_window=window, max_position_embeddings=n_ctx, **sizes
        )
        assert agreement.reference(MistralForCausalLM(config).eval(), n_ctx, "short").tokens.shape == (2, length)


def test_a_model_that_looks_ahead_is_refused_when_it_runs():
    from transformers import BertConfig, BertLMHeadModel

    config = BertConfig(
        vocab_size=24, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, initializer_range=0.3
    )
    agreement.reference(BertLMHeadModel(BertConfig(**{**config.to_dict(), "is_decoder": True})).eval(), 24, "decoder")
    with pytest.raises(ValueError, match="whose logits depend on tokens that come later; wanted a causal decoder"):
        agreement.reference(BertLMHeadModel(config).eval(), 24, "encoder")


def test_what_the_bridge_cannot_wrap_is_refused_in_one_line(tmp_path):
    # Its last norm is left out, which TransformerLens' processing does not expect.
    save_checkpoint("opt", 2, tmp_path, do_layer_norm_before=False)
    with pytest.raises(
        ValueError, match=r"bridge cannot wrap \(processed: .*\)\. Try model\.processing=raw"
    ) as refused:
        load_model(str(tmp_path))
    assert "\n" not in str(refused.value)


def test_a_dtype_that_the_model_does_not_run_in_is_refused(tmp_path):
    save_checkpoint("gptj", 2, tmp_path)
    folder = str(read_header(str(tmp_path)).folder)
    with pytest.raises(ValueError, match=r"which does not run in float32 on meta \("):
        load_model(folder, device="meta")
