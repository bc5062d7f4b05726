"""HyTRec in float64 NumPy, a history at a time, from its equations and not from our code."""

import numpy as np

from tests.models.reference import sigmoid, silu

DAY = 86_400


def hytrec(config, p, items, seconds):
    """The hidden states [T, D] of one history."""
    time = len(items)
    # Sizes that the weights would otherwise bring with them.
    for name, array in p.items():
        if name.endswith("convolution/weight"):
            assert len(array) == config.kernel
        if name.endswith("contract/kernel"):
            assert len(array) == config.feed_forward * config.width
    x = np.sqrt(config.width) * p["embedding/table"][items].astype(np.float64)
    linear, softmax = map(int, config.ratio.split(":"))
    late = config.short_events
    delay = late if config.question == "present" else 0
    long = x
    for i in range(config.num_layers):
        name = f"long/{i}"
        if i % (linear + softmax) < linear:
            mixer = lambda h, n=name: temporal_delta(  # noqa: E731
                config, p, f"{n}/mixer", h, seconds, delay=delay
            )
        else:
            most = config.attention_window
            mixer = lambda h, n=name, w=most: attention(  # noqa: E731
                config, p, f"{n}/mixer", h, w, seconds, behind=delay
            )
        long = block(p, name, long, mixer)
    short, left = x, config.short_events - 1
    for i in range(config.short_layers):
        name = f"short/{i}"
        # The first blocks take the larger part of what is left of K.
        window = 1 + -(-left // (config.short_layers - i))
        left -= window - 1
        if config.attention_convolution:
            window -= config.kernel - 1
        short = block(
            p,
            name,
            short,
            lambda h, n=name, w=window: attention(config, p, f"{n}/mixer", h, w, seconds),
        )
    if config.question == "delayed":
        long = np.array([p["null"] if t < late else long[t - late] for t in range(time)])
    else:
        if config.question == "short":
            long = temporal_delta(
                config,
                p,
                "reading/mixer",
                rms(p, "reading/memory_norm", long, 1e-6),
                seconds,
                delay=late,
                question=rms(p, "reading/question_norm", short, 1e-6),
            )
        long, short = rms(p, "long_norm", long, 1e-6), rms(p, "short_norm", short, 1e-6)
    hidden = np.zeros((time, config.width))
    for t in range(time):
        l = long[t]  # noqa: E741
        f = sigmoid(dense(p, "fusion", np.concatenate([l, short[t]])))
        z = f * short[t] + (1 - f) * l
        z = (z - z.mean()) / np.sqrt(z.var() + 1e-6)
        hidden[t] = z * p["norm/scale"] + p["norm/bias"]
    return hidden


def block(p, name, x, mixer):
    x = x + mixer(rms(p, f"{name}/mixer_norm", x, 1e-6))
    h = rms(p, f"{name}/feed_forward_norm", x, 1e-6)
    gate, value = np.split(dense(p, f"{name}/feed_forward/expand", h), 2, axis=-1)
    inner = silu(gate) * value
    return x + dense(p, f"{name}/feed_forward/contract", inner)


def attention(config, p, name, x, window, seconds, behind=0):
    mixed = dense(p, f"{name}/query_key_value", x)
    if config.attention_convolution:
        mixed = convolved(p[f"{name}/convolution/weight"], mixed)
    q, k, v = np.split(mixed, 3, axis=-1)
    output = np.zeros_like(v)
    days = np.asarray(seconds, np.int64) / DAY
    for h, head in enumerate(np.split(np.arange(x.shape[1]), config.heads)):
        asked, known = q[:, head], k[:, head]
        if not config.attention_convolution:
            asked, known = turn(asked), turn(known)
        scores = (asked @ known.conj().T).real / np.sqrt(len(head))
        if config.timed_attention:
            scores -= (days[:, None] - days) / np.exp(p[f"{name}/log_horizon"][h])
        for t in range(behind, len(x)):
            seen = slice(max(0, t - behind - window + 1), t - behind + 1)
            weights = np.exp(scores[t, seen] - scores[t, seen].max())
            output[t, head] = weights / weights.sum() @ v[seen, head]
    return dense(p, f"{name}/output", output)


def convolved(taps, x):
    """SiLU of the causal convolution, its last tap the current event."""
    sums = [
        sum(taps[len(taps) - 1 - j] * x[t - j] for j in range(min(len(taps), t + 1)))
        for t in range(len(x))
    ]
    return silu(np.array(sums))


def turn(x):
    """Pair i = (2i, 2i + 1), as a complex number, turned by position · 10000^(−2i / K)."""
    pairs = x[:, 0::2] + 1j * x[:, 1::2]
    rates = 10_000.0 ** (-np.arange(pairs.shape[1]) / pairs.shape[1])
    return pairs * np.exp(1j * np.arange(len(x))[:, None] * rates)


def temporal_delta(config, p, name, x, seconds, delay=0, question=None):
    """TADN; `config` needs heads, key_width, gate and time.

    With a delay event t reads the memory that event t - delay left, faded over the time between.
    """
    question = x if question is None else question
    mixed = dense(p, f"{name}/query_key_value", x)
    asked = dense(p, f"{name}/query_key_value", question)
    keys = config.heads * (config.key_width or x.shape[1] // config.heads)
    values = mixed.shape[1] - 2 * keys
    mixed = np.concatenate([asked[:, :keys], mixed[:, keys:]], axis=1)
    mixed = convolved(p[f"{name}/convolution/weight"], mixed)
    beta = sigmoid(dense(p, f"{name}/write_strength", x))
    log_decay = -np.exp(p[f"{name}/log_rate"]) * np.log1p(
        np.exp(dense(p, f"{name}/decay_gate", x) + p[f"{name}/step_bias"])
    )
    fading = np.zeros_like(log_decay)
    if config.time != "none":
        gaps = np.diff(np.asarray(seconds, np.int64), prepend=seconds[0]) / DAY
        gaps = np.clip(gaps, 0, 3650) if config.time == "gaps" else np.ones(len(x))
        fading = -gaps[:, None] / np.exp(p[f"{name}/log_horizon"])
    log_decay = log_decay + fading
    share = np.ones_like(beta)
    if config.gate != "none":
        means = np.array([x[: t + 1].mean(0) for t in range(len(x))])
        share = sigmoid(dense(p, f"{name}/spike_gate", np.concatenate([x, x - means], -1)))
    write = erase = beta
    if config.gate in ("write", "beta"):
        write = share * beta
    if config.gate == "erase":
        erase = (0.01 + 0.99 * share) * beta
    if config.gate == "beta":
        erase = share * beta
    if config.gate == "retention":
        log_decay = log_decay + np.log(share)

    output = np.zeros((len(x), values))
    for h, part in enumerate(np.split(np.arange(values), config.heads)):
        q, k, v = (
            np.split(array, config.heads, axis=-1)[h]
            for array in np.split(mixed, [keys, 2 * keys], axis=-1)
        )
        q, k = (y / np.sqrt((y**2).sum(-1, keepdims=True) + 1e-6) for y in (q, k))
        memories, memory = [], np.zeros((k.shape[1], len(part)))
        for t in range(len(x)):
            memory = memory * np.exp(log_decay[t, h])
            change = write[t, h] * v[t] - erase[t, h] * (memory.T @ k[t])
            memory = memory + np.outer(k[t], change)
            memories.append(memory)
        for t in range(delay, len(x)):
            left = np.exp(fading[t - delay + 1 : t + 1, h].sum())
            read = left * memories[t - delay].T @ q[t] / np.sqrt(k.shape[1])
            output[t, part] = rms(p, f"{name}/norm", read, 1e-5)
    gated = output * silu(dense(p, f"{name}/output_gate", question))
    return dense(p, f"{name}/output", gated)


def dense(p, name, x):
    return x @ p[f"{name}/kernel"] + p.get(f"{name}/bias", 0.0)


def rms(p, name, x, epsilon):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + epsilon) * p[f"{name}/scale"]


def random_times(length, seed=0):
    """Seconds of `length` events: bursts within a minute, and up to ten days of absence."""
    rng = np.random.default_rng(seed)
    gaps = np.exp(rng.uniform(np.log(1), np.log(10 * DAY), length)) * (rng.random(length) > 0.2)
    return np.cumsum(gaps).astype(np.int32)
