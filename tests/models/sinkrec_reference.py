"""SinkRec in float64 NumPy, a history at a time, from its equations and not from our code."""

import numpy as np

from tests.models.reference import gelu, layer_norm, sigmoid, silu


def sinkrec(config, arrays, events):
    """Logits [B, T, N + 1], L_vq and L_rec: one history at a time, from the definition."""
    arrays = {name: np.float64(array) for name, array in arrays.items()}
    table = arrays["embedding/table"]
    logits = np.zeros((*events.items.shape, len(table)))
    vq, reconstruction = [], [[] for _ in config.dilations]
    for b, row in enumerate(events.segment_ids):
        for segment in np.unique(row[row > 0]):
            slots = np.flatnonzero(row == segment)
            embedded = np.sqrt(config.width) * table[events.items[b, slots]]
            days = np.diff(events.timestamps[b, slots].astype(np.int64)) / 86_400
            gaps = np.concatenate([[0.0], np.clip(days, 0, 3650)])
            memory = None
            if config.memory:
                memory, losses = read_memory(config, arrays, embedded)
                vq += losses[0]
                for window, missed in zip(reconstruction, losses[1], strict=True):
                    window += missed
            x = embedded
            for r in range(config.loops):
                name = f"blocks/{0 if config.shared else r}"
                x = block(config, arrays, name, x + arrays["loops"][r], gaps, memory)
            logits[b, slots] = rms(arrays, "norm", x) @ table.T
    sums = [np.sum(window, axis=0) for window in reconstruction if window]
    return logits, np.mean(vq or [0]), np.mean([missed / square for missed, square in sums] or [0])


def read_memory(config, arrays, embedded):
    """m [T, D], n [T, M, D/2], ρ [T]; L_vq, a number per window and event; what was missed of each
    window of each event, and its square."""
    time, width = embedded.shape
    vectors, slots, errors, vq = [], [], [], []
    reconstruction = [[] for _ in config.dilations]
    for s, dilation in enumerate(config.dilations):
        z_all, n_all, rho = [], [], []
        for t in range(time):
            places = [t - i * dilation for i in range(config.memory_window)]
            taps = np.array([embedded[p] if p >= 0 else np.zeros(width) for p in places])
            hidden = gelu(linear(arrays, f"memory/encoders/{s}", taps.reshape(-1)))
            z = linear(arrays, f"memory/projections/{s}", hidden)
            z = layer_norm(arrays, f"memory/norms/{s}", z, 1e-8)
            rest, chosen, loss = z, [], 0.0
            for level in range(config.levels):
                book = arrays["memory/codebooks"][s, level]
                code = book[((rest - book) ** 2).sum(axis=1).argmin()]
                loss += 1.25 * ((rest - code) ** 2).mean()
                rest = rest - code
                chosen.append(code)
            found = np.sum(chosen, axis=0)
            decoded = linear(arrays, f"memory/decoders/{s}", found).reshape(taps.shape)
            there = np.array([p >= 0 for p in places])[:, None]
            reconstruction[s].append([(there * (decoded - taps) ** 2).sum(), (taps**2).sum()])
            vq.append(loss)
            z_all.append(found)
            n_all.append(chosen)
            rho.append(((z - found) ** 2).sum() / (z**2).sum())
        vectors.append(z_all)
        slots.append(n_all)
        errors.append(rho)
    m = np.concatenate(vectors, axis=-1) @ arrays["memory/output/kernel"]
    n = np.concatenate(slots, axis=1) + arrays["memory/types"]
    return (m, n, np.mean(errors, axis=0)), (vq, reconstruction)


def block(config, arrays, name, h, gaps, memory):
    width = config.width
    if memory is not None and config.reinjection:
        key = rms(
            arrays,
            f"{name}/reinjection/key_norm",
            kernel(arrays, f"{name}/reinjection/gate_key", memory[0]),
        )
        query = rms(arrays, f"{name}/reinjection/input_norm", h)
        share = sigmoid((key * query).sum(-1, keepdims=True) / np.sqrt(width))
        h = h + share * kernel(arrays, f"{name}/reinjection/value", memory[0])
    h = h + attention(
        config, arrays, f"{name}/attention", rms(arrays, f"{name}/attention_norm", h), memory
    )
    h = h + tdgd(
        config, arrays, f"{name}/mixer", rms(arrays, f"{name}/mixer_norm", h), gaps, memory
    )
    gate, value = np.split(
        kernel(arrays, f"{name}/feed_forward/expand", rms(arrays, f"{name}/feed_forward_norm", h)),
        2,
        -1,
    )
    return h + kernel(arrays, f"{name}/feed_forward/contract", silu(gate) * value)


def attention(config, arrays, name, x, memory):
    mixed = kernel(arrays, f"{name}/query_key_value", x)
    if config.attention_convolution:
        mixed = convolution(arrays, name, mixed)
    q, k, v = np.split(mixed, 3, axis=-1)
    output = np.zeros_like(x)
    slots = memory is not None and config.memory_key_values
    if slots:
        mk, mv = np.split(kernel(arrays, f"{name}/memory_key_value", memory[1]), 2, axis=-1)
    for t in range(len(x)):
        seen = slice(max(0, t - config.attention_window + 1), t + 1)
        for head in np.split(np.arange(config.width), config.heads):
            keys, values = k[seen, head], v[seen, head]
            if slots:
                keys = np.vstack([keys, mk[t][:, head]])
                values = np.vstack([values, mv[t][:, head]])
            weights = np.exp(keys @ q[t, head] / np.sqrt(len(head)))
            output[t, head] = weights @ values / weights.sum()
    return kernel(arrays, f"{name}/output", output)


def convolution(arrays, name, x):
    weight = arrays[f"{name}/convolution/weight"]
    mixed = np.zeros_like(x)
    for t in range(len(x)):
        for back in range(min(len(weight), t + 1)):
            mixed[t] += weight[-1 - back] * x[t - back]
    return silu(mixed)


def tdgd(config, arrays, name, x, gaps, memory):
    heads, dk, dv = config.heads, config.key_width, config.value_width
    mixed = convolution(arrays, name, kernel(arrays, f"{name}/query_key_value", x))
    q, k, v = np.split(mixed, [heads * dk, 2 * heads * dk], axis=-1)
    if config.temporal_addressing:
        u = np.log1p(gaps)[:, None] * 2.0 ** np.arange(8) * np.pi / np.log(3651)
        phi = np.hstack([np.sin(u), 1 - np.cos(u)]) @ arrays["gap_features/projection/kernel"]
        shift = kernel(arrays, f"{name}/address", phi)
        q, k = q + shift[:, : heads * dk], k + shift[:, heads * dk :]
    q, k = unit(q.reshape(-1, heads, dk)), unit(k.reshape(-1, heads, dk))
    v = v.reshape(-1, heads, dv)
    softplus = np.log1p(
        np.exp(kernel(arrays, f"{name}/decay_gate", x) + arrays[f"{name}/step_bias"])
    )
    log_a = -np.exp(arrays[f"{name}/log_rate"]) * softplus
    if config.temporal_decay:
        log_a = log_a - gaps[:, None] / np.exp(arrays[f"{name}/log_horizon"])
    beta = sigmoid(kernel(arrays, f"{name}/write_strength", x))
    if memory is not None and (config.write_gate == "memory" or config.read_removal):
        km = unit(kernel(arrays, f"{name}/memory_key", memory[0]).reshape(-1, heads, dk))
        both = np.hstack([x, memory[0]])
    if memory is not None and config.write_gate == "memory":
        w1, w2 = arrays[f"{name}/coverage_weights"]
        alike = np.maximum((k * km).sum(-1), 0)
        gate = w1 * alike + w2 * (1 - memory[2])[:, None]
        gate = gate + kernel(arrays, f"{name}/coverage_gate", both)
        beta = beta * (1 - sigmoid(gate + arrays[f"{name}/coverage_bias"]))
    elif config.write_gate == "input":
        gate = kernel(arrays, f"{name}/coverage_gate", x) + arrays[f"{name}/coverage_bias"]
        beta = beta * (1 - sigmoid(gate))
    if memory is not None and config.read_removal:
        gate = kernel(arrays, f"{name}/removal_gate", both) + arrays[f"{name}/removal_bias"]
        q = q - sigmoid(gate)[..., None] * km
    output = np.zeros((len(x), heads, dv))
    for head in range(heads):
        state = np.zeros((dk, dv))
        for t in range(len(x)):
            state = state * np.exp(log_a[t, head])
            key = k[t, head]
            state = state + np.outer(key, beta[t, head] * (v[t, head] - state.T @ key))
            output[t, head] = state.T @ q[t, head] / np.sqrt(dk)
    output = rms(arrays, f"{name}/norm", output, 1e-5).reshape(len(x), -1)
    return kernel(arrays, f"{name}/output", output * silu(kernel(arrays, f"{name}/output_gate", x)))


def kernel(arrays, name, x):
    return x @ arrays[f"{name}/kernel"]


def linear(arrays, name, x):
    return kernel(arrays, name, x) + arrays[f"{name}/bias"]


def rms(arrays, name, x, epsilon=1e-6):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + epsilon) * arrays[f"{name}/scale"]


def unit(x):
    return x / np.sqrt((x**2).sum(-1, keepdims=True) + 1e-6)
