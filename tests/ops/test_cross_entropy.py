"""Against the definition in float64; what padding, blocks and bad targets may not do."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from linseqrec.ops.cross_entropy import Blocks, catalogue_cross_entropy, choose_blocks

NUM_ITEMS, WIDTH = 23, 8
# Relative to the largest expected number.
LOSS, GRADIENT = 1e-6, 1e-5


def definition(hidden, table, targets, weights):
    """Sum of w (logsumexp over items 1..N - target's logit) and its gradients, one token a time."""
    hidden, table, weights = (np.asarray(x, np.float64) for x in (hidden, table, weights))
    loss = 0.0
    to_hidden, to_table, to_weights = map(np.zeros_like, (hidden, table, weights))
    for token in np.ndindex(weights.shape):
        if weights[token] == 0:
            continue
        logits = table[1:] @ hidden[token]
        powers = np.exp(logits - logits.max())
        own = targets[token] - 1
        to_weights[token] = logits.max() + np.log(powers.sum()) - logits[own]
        loss += weights[token] * to_weights[token]
        difference = powers / powers.sum()
        difference[own] -= 1
        to_hidden[token] = weights[token] * (difference @ table[1:])
        to_table[1:] += weights[token] * np.outer(difference, hidden[token])
    return loss, (to_hidden, to_table, to_weights)


def example(shape=(5, 7), num_items=NUM_ITEMS, seed=0, dtype=jnp.float32):
    """Random tokens, about a third of them of weight 0."""
    draw = np.random.default_rng(seed)
    weights = draw.uniform(0.2, 2, shape) * (draw.random(shape) < 0.7)
    weights.flat[0] = 0.5
    return (
        jnp.asarray(draw.normal(size=(*shape, WIDTH)), dtype),
        jnp.asarray(draw.normal(size=(num_items + 1, WIDTH)), dtype),
        jnp.asarray(draw.integers(1, num_items + 1, shape), jnp.int32),
        jnp.asarray(weights, jnp.float32),
    )


@functools.cache
def differentiated(token_block=None, catalogue_block=None):
    """Jitted loss with gradients to hidden, table, weights."""
    loss = functools.partial(
        catalogue_cross_entropy, token_block=token_block, catalogue_block=catalogue_block
    )
    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 3)))


def assert_near(actual, expected, tolerance):
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * np.abs(expected).max())


def assert_same(actual, expected, loss=LOSS, gradient=GRADIENT):
    assert_near(actual[0], expected[0], loss)
    for one, other in zip(actual[1], expected[1], strict=True):
        assert_near(one, other, gradient)


# Of 35 tokens and 24 table rows: one pass and two, with a short last block of tokens and a short
# first block of rows; (1, 1) leaves the padding row alone in the first block.
ONE_PASS, TWO_PASSES = (8, NUM_ITEMS + 1), (8, 5)
PASSES = pytest.mark.parametrize("blocks", [ONE_PASS, TWO_PASSES])


@pytest.mark.optimized
@pytest.mark.parametrize("blocks", [(None, None), ONE_PASS, TWO_PASSES, (1, 1)])
def test_loss_and_gradients_are_the_definitions(blocks):
    arguments = example()
    actual = differentiated(*blocks)(*arguments)
    assert actual[0].dtype == jnp.float32 and actual[0].shape == ()
    assert_same(actual, definition(*arguments))


@PASSES
def test_the_shorter_program_without_gradients_has_the_same_loss(blocks):
    loss = functools.partial(
        catalogue_cross_entropy, token_block=blocks[0], catalogue_block=blocks[1]
    )
    assert_near(jax.jit(loss)(*example()), definition(*example())[0], LOSS)


@pytest.mark.parametrize("num_items", [1, 2])
def test_one_token_and_hardly_any_items(num_items):
    arguments = example((1,), num_items)
    actual = differentiated()(*arguments)
    expected = definition(*arguments)
    np.testing.assert_allclose(actual[0], expected[0], atol=1e-6)
    for one, other in zip(actual[1], expected[1], strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_gradients_scale_with_what_follows():
    hidden, table, targets, weights = example()

    def mean(hidden, table, weights):
        total = catalogue_cross_entropy(hidden, table, targets, weights)
        return 3 * total / weights.sum()

    actual = jax.jit(jax.grad(mean, argnums=(0, 1, 2)))(hidden, table, weights)
    loss, (to_hidden, to_table, to_weights) = definition(hidden, table, targets, weights)
    sum_of_weights = float(weights.sum())
    assert_near(actual[0], 3 * to_hidden / sum_of_weights, GRADIENT)
    assert_near(actual[1], 3 * to_table / sum_of_weights, GRADIENT)
    expected = 3 * (to_weights / sum_of_weights - loss / sum_of_weights**2)
    assert_near(actual[2], expected, GRADIENT)


@PASSES
def test_the_padding_row_is_no_candidate(blocks):
    hidden, table, targets, weights = example()
    run = differentiated(*blocks)
    before = run(hidden, table, targets, weights)
    after = run(hidden, table.at[0].set(50.0), targets, weights)
    np.testing.assert_array_equal(after[1][1][0], 0)
    assert_same(after, before, 0, 0)


@PASSES
@pytest.mark.parametrize("rubbish", [np.nan, np.inf])
def test_tokens_of_weight_0_do_not_exist(blocks, rubbish):
    hidden, table, targets, weights = example()
    absent = np.asarray(weights) == 0
    assert absent.sum() >= 8
    hidden = jnp.where(absent[..., None], rubbish, hidden)
    targets = jnp.where(absent, jnp.asarray([0, -3, NUM_ITEMS + 9, 4, 5, 0, 0]), targets)
    loss, (to_hidden, to_table, to_weights) = differentiated(*blocks)(
        hidden, table, targets, weights
    )
    kept = [np.asarray(x)[~absent] for x in (hidden, targets, weights)]
    expected = definition(kept[0], table, kept[1], kept[2])
    assert_same(
        (loss, (np.asarray(to_hidden)[~absent], to_table, np.asarray(to_weights)[~absent])),
        expected,
    )
    np.testing.assert_array_equal(np.asarray(to_hidden)[absent], 0)
    np.testing.assert_array_equal(np.asarray(to_weights)[absent], 0)


def test_nothing_but_padding_is_0():
    hidden, table, targets, weights = example()
    loss, gradients = differentiated(*TWO_PASSES)(hidden * jnp.nan, table, targets * 0, weights * 0)
    assert loss == 0
    for gradient in gradients:
        np.testing.assert_array_equal(gradient, 0)


def test_the_order_of_tokens_is_free():
    hidden, table, targets, weights = example()
    order = np.random.default_rng(1).permutation(targets.size)

    def move(array):
        return array.reshape(-1, *array.shape[2:])[order].reshape(array.shape)

    run = differentiated(*TWO_PASSES)
    loss, (to_hidden, to_table, to_weights) = run(hidden, table, targets, weights)
    moved = run(move(hidden), table, move(targets), move(weights))
    assert_same(moved, (loss, (move(to_hidden), to_table, move(to_weights))))


@PASSES
def test_logits_of_10_000_either_way(blocks):
    hidden, table, targets, weights = (jnp.zeros_like(x) for x in example())
    table = table.at[:, 0].set(jnp.linspace(-1, 1, NUM_ITEMS + 1))
    hidden = hidden.at[0, :4, 0].set(jnp.asarray([1e4, -1e4, 1e4, -1e4]))
    targets = targets.at[0, :4].set(jnp.asarray([NUM_ITEMS, 1, 1, NUM_ITEMS]))
    weights = weights.at[0, :4].set(1)
    actual = differentiated(*blocks)(hidden, table, targets, weights)
    assert_same(actual, definition(hidden, table, targets, weights))
    # A likelihood of 1 is exactly that, however large the logits.
    np.testing.assert_array_equal(actual[1][2][0, :2], 0)


@PASSES
def test_bfloat16_loses_its_own_digits_only(blocks):
    hidden, table, targets, weights = example(dtype=jnp.bfloat16)
    expected = definition(hidden, table, targets, weights)
    actual = differentiated(*blocks)(hidden, table.astype(jnp.float32), targets, weights)
    assert actual[1][0].dtype == jnp.bfloat16 and actual[1][1].dtype == jnp.float32
    # Logits accumulate in float32; the softmax is rounded to 8 bits before its matmuls.
    assert_same(actual, expected, loss=1e-5, gradient=1e-2)


def test_micro_batches_in_a_scan_add_up():
    hidden, table, targets, weights = example((4, 9))

    @jax.jit
    def accumulate(table):
        def step(total, batch):
            state, target, weight = batch
            loss, gradient = jax.value_and_grad(catalogue_cross_entropy, argnums=1)(
                state, table, target, weight, token_block=4
            )
            return jax.tree.map(jnp.add, total, (loss, gradient)), None

        start = jnp.zeros(()), jnp.zeros_like(table)
        return jax.lax.scan(step, start, (hidden, targets, weights))[0]

    loss, gradient = accumulate(table)
    expected = definition(hidden, table, targets, weights)
    assert_near(loss, expected[0], LOSS)
    assert_near(gradient, expected[1][1], GRADIENT)


@pytest.mark.parametrize("wrong", [0, -1, NUM_ITEMS + 1])
def test_a_target_that_is_no_item_is_never_a_number(wrong):
    hidden, table, targets, weights = example()
    weights = weights.at[1, 3].set(1.0)
    targets = targets.at[1, 3].set(wrong)
    with pytest.raises(
        ValueError, match=rf"1 targets .* not in 1\.\.23.* {wrong} at index \(1, 3\)"
    ):
        catalogue_cross_entropy(hidden, table, targets, weights)
    loss, (_, to_table, _) = differentiated(*TWO_PASSES)(hidden, table, targets, weights)
    assert np.isnan(loss) and np.isnan(to_table).any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h, e, y, w: (h[..., :-1], e, y, w), "do not fit"),
        (lambda h, e, y, w: (h, e, y[:1], w), "leading axes"),
        (lambda h, e, y, w: (h, e, y, w[..., None]), "leading axes"),
        (lambda h, e, y, w: (h, e, y.astype(jnp.float32), w), "integers"),
        (lambda h, e, y, w: (h[:0], e, y[:0], w[:0]), "needs a token and an item"),
        (lambda h, e, y, w: (h, e[:1], y, w), "needs a token and an item"),
    ],
)
@pytest.mark.usefixtures("without_type_checks")
def test_arguments_that_do_not_fit_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        catalogue_cross_entropy(*change(*example()))


@pytest.mark.parametrize("blocks", [{"token_block": 0}, {"catalogue_block": 0}])
def test_a_block_holds_something(blocks):
    with pytest.raises(ValueError, match="at least one row"):
        catalogue_cross_entropy(*example(), **blocks)


def compiled(tokens, num_items, **blocks):
    """Loss and gradients at a size that is compiled and never run."""
    shapes = (
        jax.ShapeDtypeStruct((tokens, 64), jnp.float32),
        jax.ShapeDtypeStruct((num_items + 1, 64), jnp.float32),
        jax.ShapeDtypeStruct((tokens,), jnp.int32),
        jax.ShapeDtypeStruct((tokens,), jnp.float32),
    )
    loss = functools.partial(catalogue_cross_entropy, **blocks)
    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1))).lower(*shapes).compile()


@pytest.mark.parametrize(("num_items", "share"), [(3_416, 1), (50_000, 1 / 5), (1_000_000, 1 / 20)])
def test_memory_stays_far_below_the_logits(num_items, share):
    tokens = 4_096
    program = compiled(tokens, num_items)
    logits = tokens * num_items * 4
    assert program.memory_analysis().temp_size_in_bytes < share * logits
    for rows in (num_items, num_items + 1):
        assert f"[{tokens},{rows}]" not in program.as_text()
        assert f"[{rows},{tokens}]" not in program.as_text()


@pytest.mark.parametrize("platform", ["cpu", "gpu", "tpu"])
@pytest.mark.parametrize("num_items", [1, 3_416, 50_000, 1_000_000])
@pytest.mark.parametrize("tokens", [1, 200, 6_400, 100_000])
def test_chosen_blocks_are_few_full_and_within_the_budget(tokens, num_items, platform):
    blocks = choose_blocks(tokens, num_items, platform)
    budget = 2**22 if platform == "cpu" else 2**26
    assert 1 <= blocks.token <= tokens and 1 <= blocks.catalogue <= num_items + 1
    assert blocks.token * blocks.catalogue <= budget
    count = -(-tokens // blocks.token)
    assert count * blocks.token - tokens < count, "the last block is as full as the others"


def test_small_catalogues_take_one_pass_and_large_ones_two():
    assert choose_blocks(6_400, 3_416, "cpu") == Blocks(token=493, catalogue=3_417)
    assert choose_blocks(4_096, 1_000_000, "cpu") == Blocks(token=512, catalogue=4_096)
