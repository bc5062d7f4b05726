"""Against the definitions in float64, one token and one drawn item a time."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from linseqrec.ops.cross_entropy import catalogue_cross_entropy
from linseqrec.ops.negatives import popularity_proposal, uniform_proposal
from linseqrec.ops.sampled_losses import binary_cross_entropy, gbce_power, sampled_softmax

NUM_ITEMS, WIDTH, DRAWN = 11, 4, 5
COUNTS = np.arange(NUM_ITEMS + 1) ** 2.0
CALIBRATION = 0.75


def example(shape=(3, 4), seed=0):
    draw = np.random.default_rng(seed)
    weights = draw.uniform(0.2, 2, shape)
    weights[0, 1] = weights[2, 0] = 0
    return (
        jnp.asarray(draw.normal(size=(*shape, WIDTH)), jnp.float32),
        jnp.asarray(draw.normal(size=(NUM_ITEMS + 1, WIDTH)), jnp.float32),
        jnp.asarray(draw.integers(1, NUM_ITEMS + 1, shape), jnp.int32),
        jnp.asarray(weights, jnp.float32),
    )


def drawn(shape, targets):
    """Items with repeats; the first own one of every token collides with its target."""
    items = np.random.default_rng(3).integers(1, NUM_ITEMS + 1, shape)
    if len(shape) == 1:
        items[:2] = targets[0, 0]
    else:
        items[..., 0] = targets
    return jnp.asarray(items, jnp.int32)


def softmax_of(own, others, log_q, count):
    total = np.exp(own) + sum(np.exp(score - log_q[item]) / count for item, score in others)
    return np.log(total) - own


def binary_of(own, others, log_q, count, power=1.0):
    rejected = sum(np.log1p(np.exp(score)) for _, score in others)
    return (power * np.log1p(np.exp(-own)) + rejected) / (count + 1)


def generalised_of(own, others, log_q, count):
    alpha = count / (NUM_ITEMS - 1)
    power = alpha * (CALIBRATION * (1 - 1 / alpha) + 1 / alpha)
    return binary_of(own, others, log_q, count, power)


def definition(of_token, hidden, table, targets, weights, negatives, log_q):
    hidden, table, weights, log_q = (
        np.asarray(x, np.float64) for x in (hidden, table, weights, log_q)
    )
    negatives = np.broadcast_to(negatives, (*targets.shape, negatives.shape[-1]))
    total = 0.0
    for token in np.ndindex(targets.shape):
        if weights[token] != 0:
            own = hidden[token] @ table[targets[token]]
            others = [
                (item, hidden[token] @ table[item])
                for item in negatives[token]
                if item != targets[token]
            ]
            total += weights[token] * of_token(own, others, log_q, negatives.shape[-1])
    return total


def without_log_q(loss, **settings):
    return lambda *arguments: loss(*arguments[:-1], **settings)


LOSSES = {
    "sampled softmax": (sampled_softmax, softmax_of),
    "binary": (without_log_q(binary_cross_entropy), binary_of),
    "generalised": (
        without_log_q(binary_cross_entropy, power=gbce_power(DRAWN, NUM_ITEMS, CALIBRATION)),
        generalised_of,
    ),
}
EACH_LOSS = pytest.mark.parametrize("name", LOSSES)


@functools.cache
def differentiated(name):
    return jax.jit(jax.value_and_grad(LOSSES[name][0], argnums=(0, 1, 3)))


@pytest.mark.optimized
@EACH_LOSS
@pytest.mark.parametrize("shape", [(DRAWN,), (3, 4, DRAWN)], ids=["shared", "own"])
def test_loss_and_gradients_are_the_definitions(name, shape):
    hidden, table, targets, weights = example()
    negatives = drawn(shape, targets)
    log_q = popularity_proposal(COUNTS).log_q
    loss, gradients = differentiated(name)(hidden, table, targets, weights, negatives, log_q)
    assert loss.dtype == jnp.float32 and loss.shape == ()
    define = functools.partial(definition, LOSSES[name][1])
    expected = define(hidden, table, targets, weights, negatives, log_q)
    np.testing.assert_allclose(loss, expected, rtol=2e-6)
    # Central differences along random directions; absent tokens' weights stay 0.
    draw = np.random.default_rng(1)
    inputs = [np.asarray(x, np.float64) for x in (hidden, table, weights)]
    for index, gradient in enumerate(gradients):
        direction = draw.normal(size=inputs[index].shape)
        if index == 2:
            direction[inputs[2] == 0] = 0
        values = []
        for step in (1e-5, -1e-5):
            moved = list(inputs)
            moved[index] = inputs[index] + step * direction
            values.append(define(moved[0], moved[1], targets, moved[2], negatives, log_q))
        slope = (values[0] - values[1]) / 2e-5
        np.testing.assert_allclose(np.sum(gradient * direction), slope, rtol=2e-5, atol=2e-5)
    np.testing.assert_array_equal(gradients[1][0], 0)


@EACH_LOSS
def test_tokens_of_weight_0_do_not_exist(name):
    hidden, table, targets, weights = example()
    log_q = uniform_proposal(NUM_ITEMS).log_q
    absent = np.asarray(weights) == 0
    negatives = drawn((3, 4, DRAWN), targets)
    expected = differentiated(name)(hidden, table, targets, weights, negatives, log_q)
    loss, gradients = differentiated(name)(
        jnp.where(absent[..., None], jnp.nan, hidden),
        table,
        jnp.where(absent, 0, targets),
        weights,
        jnp.where(absent[..., None], 0, negatives),
        log_q,
    )
    np.testing.assert_array_equal(loss, expected[0])
    for gradient, other in zip(gradients, expected[1], strict=True):
        np.testing.assert_array_equal(gradient, other)
    for gradient in (gradients[0], gradients[2]):
        np.testing.assert_array_equal(np.asarray(gradient)[absent], 0)


def test_every_item_drawn_once_uniformly_is_the_full_softmax():
    arguments = example()
    negatives = jnp.arange(1, NUM_ITEMS + 1)
    sampled = sampled_softmax(*arguments, negatives, uniform_proposal(NUM_ITEMS).log_q)
    np.testing.assert_allclose(sampled, catalogue_cross_entropy(*arguments), rtol=2e-6)


def test_the_partition_function_is_estimated_without_bias():
    hidden, table, targets, _ = example()
    hidden, target = hidden[0, 0], targets[0, 0]
    log_q = popularity_proposal(COUNTS).log_q
    logits = np.asarray(table, np.float64)[1:] @ np.asarray(hidden, np.float64)
    own = logits[target - 1]
    # The mean over draws of one item, item by item, with its probability.
    estimates = [
        np.exp(own + float(sampled_softmax(hidden, table, target, jnp.ones(()), item, log_q)))
        for item in jnp.arange(1, NUM_ITEMS + 1)[:, None]
    ]
    mean = np.sum(np.exp(np.asarray(log_q, np.float64)[1:]) * estimates)
    np.testing.assert_allclose(mean, np.exp(logits).sum(), rtol=2e-6)


def test_power_of_the_generalised_loss_runs_from_1_to_the_sampling_rate():
    # arXiv 2308.07192: beta = alpha (t (1 - 1/alpha) + 1/alpha), alpha = 256 / 3415.
    assert gbce_power(256, 3416, 0.0) == 1
    np.testing.assert_allclose(gbce_power(256, 3416, 1.0), 256 / 3415, rtol=1e-12)
    np.testing.assert_allclose(gbce_power(256, 3416, 0.75), 0.306222547584, rtol=1e-10)


@EACH_LOSS
def test_bfloat16_loses_its_own_digits_only(name):
    hidden, table, targets, weights = example()
    hidden, log_q = hidden.astype(jnp.bfloat16), uniform_proposal(NUM_ITEMS).log_q
    negatives = drawn((DRAWN,), targets)
    loss, gradients = differentiated(name)(hidden, table, targets, weights, negatives, log_q)
    rounded = table.astype(jnp.bfloat16)
    expected = definition(LOSSES[name][1], hidden, rounded, targets, weights, negatives, log_q)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    assert gradients[0].dtype == jnp.bfloat16 and gradients[1].dtype == jnp.float32


@pytest.mark.parametrize("wrong", [0, NUM_ITEMS + 1])
@EACH_LOSS
def test_an_id_that_is_no_item_is_never_a_number(name, wrong):
    hidden, table, targets, weights = example()
    negatives, log_q = drawn((DRAWN,), targets), uniform_proposal(NUM_ITEMS).log_q
    bad_targets, bad_negatives = targets.at[0, 0].set(wrong), negatives.at[2].set(wrong)
    with pytest.raises(ValueError, match=r"targets with a weight are not in 1\.\.11"):
        LOSSES[name][0](hidden, table, bad_targets, weights, negatives, log_q)
    with pytest.raises(ValueError, match=r"negatives are items 1\.\.11"):
        LOSSES[name][0](hidden, table, targets, weights, bad_negatives, log_q)
    run = differentiated(name)
    assert np.isnan(run(hidden, table, bad_targets, weights, negatives, log_q)[0])
    assert np.isnan(run(hidden, table, targets, weights, bad_negatives, log_q)[0])


def test_settings_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="between 0 and 1"):
        gbce_power(DRAWN, NUM_ITEMS, 1.5)
    with pytest.raises(ValueError, match="11 negatives: gBCE takes 1 to 10"):
        gbce_power(NUM_ITEMS, NUM_ITEMS, 0.75)
    with pytest.raises(ValueError, match=r"\[S\] or \[\*M, S\]"):
        binary_cross_entropy(*example(), jnp.ones((4, DRAWN), jnp.int32))
