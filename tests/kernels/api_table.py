"""The table of every public function's arguments, each with its default and a test: `python -m tests.kernels.api_table`."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable

GENERATED = {
    "flash_attn_func": "test_api.py::test_flash_attn_func",
    "flash_attn_qkvpacked_func": "test_api.py::test_flash_attn_qkvpacked_func",
    "flash_attn_kvpacked_func": "test_api.py::test_flash_attn_kvpacked_func",
    "scaled_dot_product_attention": "test_api.py::test_scaled_dot_product_attention",
    "flash_attn_varlen_func": "test_api_varlen.py::test_flash_attn_varlen_func",
    "flash_attn_varlen_qkvpacked_func": "test_api_varlen.py::test_flash_attn_varlen_qkvpacked_func",
    "flash_attn_varlen_kvpacked_func": "test_api_varlen.py::test_flash_attn_varlen_kvpacked_func",
    "flash_attn_with_kvcache": "test_decode.py::test_float64_is_the_definition",
}
"""Public functions, each with the test that holds generated calls of it to plain float64 attention."""

TESTS = {
    **dict.fromkeys(("q", "k", "v", "query", "key", "value"), "test_layouts.py::test_layout_of_one_tensor"),
    **dict.fromkeys(("qkv", "kv"), "test_api.py::test_packed_tensors_are_not_copied"),
    "dropout_p": "test_dropout.py::test_edges_of_the_rate",
    "rng_state": "test_dropout.py::test_the_state_comes_from_the_generator_or_from_the_caller",
    **dict.fromkeys(("softmax_scale", "scale"), "test_function.py::test_any_scale"),
    **dict.fromkeys(("causal", "is_causal"), "test_function.py::test_public_functions_align_their_masks"),
    "window_size": "test_function.py::test_windows_are_aligned_bottom_right",
    "softcap": "test_softcap.py::test_the_public_function_caps",
    "alibi_slopes": "test_alibi.py::test_the_public_function_takes_slopes_of_heads_or_of_entries",
    "deterministic": "test_exact.py::test_repeated_calls_give_the_same_bits_and_leave_the_inputs_alone",
    "return_attn_probs": "test_function.py::test_only_one_output_has_a_cotangent",
    "attn_bias": "test_bias.py::test_a_bias_broadcasts_and_its_gradient_is_summed",
    "attn_mask": "test_bias.py::test_the_drop_in_for_torch_broadcasts_as_torch_does",
    "learnable_sink": "test_sink.py::test_float64_kernels_compute_the_definition",
    "enable_gqa": "test_function.py::test_grouped_heads_equal_repeated_heads",
    "input_precision": "test_tiles.py::test_precision_chooses_the_table_of_float32_alone",
    "tiles": "test_function.py::test_forced_tiles_are_used_and_compute_the_same_function",
}
"""A test of each argument beside the generated calls."""

TESTS_OF_THE_CACHE = {
    "q": "test_decode.py::test_strided_queries_slopes_and_integers",
    **dict.fromkeys(("k_cache", "v_cache"), "test_append.py::test_rows_are_copied"),
    **dict.fromkeys(("k", "v"), "test_append.py::test_the_function_appends_before_it_attends"),
    **dict.fromkeys(("rotary_cos", "rotary_sin"), "test_rotary.py::test_rows_are_turned_by_the_angles_of_their_position"),
    "rotary_interleaved": "test_rotary.py::test_the_two_pairings_differ_and_position_0_turns_nothing",
    "cache_seqlens": "test_decode.py::test_lengths_may_be_an_integer_or_nothing",
    "block_table": "test_paged.py::test_pages_give_the_bits_of_a_cache_without",
    "window_size": "test_decode.py::test_windows",
    "softcap": "test_decode.py::test_any_number_of_splits_gives_the_same_function",
    "num_splits": "test_decode.py::test_any_number_of_splits_gives_the_same_function",
    "alibi_slopes": "test_decode.py::test_strided_queries_slopes_and_integers",
}
"""The same of the function with a cache; arguments that are not here have the generated calls alone."""

TESTS_OF_PACKED = {
    **dict.fromkeys(("q", "k", "v"), "test_varlen.py::test_tensors_are_read_where_they_lie"),
    **dict.fromkeys(("qkv", "kv"), "test_api_varlen.py::test_packed_tensors_are_not_copied"),
    **dict.fromkeys(
        ("cu_seqlens_q", "cu_seqlens_k", "cu_seqlens"), "test_varlen.py::test_any_lengths_give_the_bits_of_separate_calls"
    ),
    **dict.fromkeys(
        ("max_seqlen_q", "max_seqlen_k", "max_seqlen"), "test_varlen.py::test_work_and_results_do_not_depend_on_the_longest"
    ),
    **dict.fromkeys(("seqused_q", "seqused_k", "seqused"), "test_varlen.py::test_unused_rows_reach_nothing"),
    **dict.fromkeys(("dropout_p", "rng_state"), "test_dropout.py::test_packed_sequences_have_the_mask_of_dense_ones"),
    "block_table": "test_bad_packed_input.py::test_a_bad_call_is_refused",
    **dict.fromkeys(
        ("softmax_scale", "causal", "window_size", "softcap"),
        "test_varlen.py::test_every_feature_gives_the_bits_of_separate_calls",
    ),
    "alibi_slopes": "test_varlen.py::test_every_dtype_with_everything_at_once",
    "return_attn_probs": "test_api_varlen.py::test_lse_alone_is_differentiable",
    "learnable_sink": "test_varlen.py::test_the_gradient_of_sinks_is_summed_over_all_sequences",
    "tiles": "test_varlen.py::test_heads_columns_and_tiles",
}
"""The same of the functions for packed sequences."""


def functions() -> dict[str, Callable[..., object]]:
    """The public functions by name."""
    import flashverify_kernels

    return {name: getattr(flashverify_kernels, name) for name in GENERATED}


def rows() -> list[tuple[str, str, str, str]]:
    """Function, argument, default, test."""
    found = []
    for name, function in functions().items():
        tests = TESTS_OF_PACKED if "varlen" in name else TESTS_OF_THE_CACHE if "kvcache" in name else TESTS
        for argument, parameter in inspect.signature(function).parameters.items():
            default = "" if parameter.default is inspect.Parameter.empty else repr(parameter.default)
            test = tests.get(argument, GENERATED[name])
            found.append((name, argument, default, test))
    return found


def page() -> str:
    """The page, Markdown."""
    lines = [
        "# Every argument of every public function, and a test of it",
        "",
        "Printed by `python -m tests.kernels.api_table`; a test holds it current. Besides, generated calls with all arguments",
        "at once are held to plain float64 attention, forward and, where there is one, backward: "
        + ", ".join(f"`{test}`" for test in GENERATED.values())
        + ". What arguments mean is in [contract.md](contract.md) and [kv-cache.md](kv-cache.md).",
        "",
        "| function | argument | default | test in tests/kernels |",
        "|---|---|---|---|",
        *(
            f"| `{name}` | `{argument}` | {f'`{default}`' if default else ''} | `{test}` |"
            for name, argument, default, test in rows()
        ),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    os.environ.setdefault("TRITON_INTERPRET", "1")
    sys.stdout.write(page())
