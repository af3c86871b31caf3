"""Oracles: high-precision truth for a case. Four implementations of one definition, which check each other.

    `mp`     mpmath, scalar code, any number of digits: reads like the formula
    `ball`   Arb balls: every value comes with a proven radius
    `dense`  float64, whole matrices
    `tiled`  float64, memory linear in the sequence length

Each has `forward(case, inputs) -> (out, lse)`, `backward(case, inputs, out, lse) -> (dq, dk, dv)` and
`attention(case, inputs)` for both. `backward` is a function of the out and lse that it is given: a kernel's own
(modular mode, which examines the backward pass alone), or, as in `attention`, the oracle's (end-to-end mode).

    P_ij = exp(scale·q_i·k_j - lse_i) where i sees j, else 0; 0 in rows with lse_i = -inf
    D_i = sum_d dout_id out_id,   dP = dout·Vᵀ,   dS_ij = P_ij (dP_ij - D_i + dlse_i)
    dq = scale·dS·K,   dk = scale·sum_group dSᵀ·Q,   dv = sum_group Pᵀ·dout

With a softcap, cap·tanh(scale·q_i·k_j / cap) stands for the logit in P, and dS_ij is multiplied by that function's
derivative, 1/cosh²(scale·q_i·k_j / cap). With alibi, -slope·|i + seqlen_k - seqlen_q - j| is added to the logit after the
cap, a constant of the backward pass. Where sequences have lengths of their own, theirs stand for seqlen_q and seqlen_k.
With dropout (`dropout/of_case.py`), Z_ij being 1 for a pair that is kept and 0 for one that is dropped:

    out_i = sum_j P_ij Z_ij r v_j,   dP_ij = Z_ij r dout_i·v_j,   dv_j = sum_group P_ij Z_ij r dout_i

and lse is that without dropout. A dropped pair is a visible one: a NaN reaches what depends on it through it.

With rotary, q and k are turned first, and there is no backward pass.

They share the statement of visibility, of the key head, of the cap, of the bias (`cases/semantics.py`), of rotary embedding
(`cases/rotary.py`) and of dropout: mpmath and balls its scalar form, float64 the vectorised one; and no other arithmetic.
"""
