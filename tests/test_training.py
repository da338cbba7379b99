"""Training: the step, the loop, the average of the weights, and what happens when it fails."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from diffusion_course import losses, process
from diffusion_course.models.mlp import MLP
from diffusion_course.training import loop, record, update

adam = cache(update.adam)  # one optimiser, and with it one compiled step, for equal settings
PROGRAMS = {}


@pytest.fixture(autouse=True)
def each_step_is_compiled_once(monkeypatch):
    """Runs with the same model, loss and optimiser share their compiled step."""
    make = update.make_step

    def shared(model, loss, optimizer, decay, **options):
        key = nnx.split(model)[0], loss, optimizer, decay, *sorted(options.items())
        if key not in PROGRAMS:
            PROGRAMS[key] = make(model, loss, optimizer, decay, **options)
        return PROGRAMS[key]

    monkeypatch.setattr(loop, "make_step", shared)
    monkeypatch.setattr(loop, "adam", adam)


def squared(model, x, labels, key):
    """A loss without noise: predict x from itself, with the label as the time."""
    return jnp.mean((model(x, labels / 10) - 2 * x) ** 2)


def noisy(model, x, labels, key):
    return losses.diffusion_loss(model, process.vp_linear(), "v", x, None, key)


def batches(size=32, start=0, bad=None):
    n = start
    while True:
        rng = np.random.default_rng(n)
        x = rng.normal(0.3, 1.7, (size, 2)).astype(np.float32)
        if n == bad:
            x[3, 1] = np.nan
        yield x, rng.integers(0, 10, size).astype(np.int32)
        n += 1


def small(seed=0):
    return MLP(2, width=16, depth=1, rngs=nnx.Rngs(seed))


def leaves(model_or_tree):
    if isinstance(model_or_tree, nnx.Module):
        model_or_tree = nnx.state(model_or_tree, nnx.Param)
    return [np.asarray(leaf) for leaf in jax.tree.leaves(model_or_tree)]


def fit(model=None, loss=squared, data=None, steps=30, **options):
    options = {"key": jax.random.key(5), "progress": False} | options
    return loop.fit(model or small(), loss, data or batches(), steps=steps, **options)


def test_the_loss_falls_and_the_history_has_one_entry_per_step():
    history = fit(steps=300, optimizer=adam(1e-2, 300)).history
    assert len(history.loss) == 300
    # An untrained network outputs 0, so the loss starts at 4·E[x²] = 4·(1.7² + .3²) ≈ 12.
    assert 8 < history.loss[0] < 16
    assert np.mean(history.loss[-20:]) < 0.05 * history.loss[0]
    assert history.images_per_second > 0 and history.seconds > 0


def test_the_model_that_was_passed_in_is_not_changed():
    model = small()
    before = leaves(model)
    result = fit(model)
    for old, now, trained in zip(before, leaves(model), leaves(result.model), strict=True):
        np.testing.assert_array_equal(old, now)
        assert not np.array_equal(now, trained)


def test_every_parameter_changes_in_two_steps():
    # Two: the zero-initialised last layer passes no gradient back in the first.
    before, after = leaves(small()), leaves(fit(steps=2, optimizer=adam(3e-3, 2)).model)
    for old, new in zip(before, after, strict=True):
        assert not np.array_equal(old, new)


def test_using_the_averaged_model_leaves_the_trained_one_alone():
    result = fit()
    before = leaves(result.model)
    nnx.update(result.ema, jax.tree.map(jnp.zeros_like, nnx.state(result.ema, nnx.Param)))
    for old, now in zip(before, leaves(result.model), strict=True):
        np.testing.assert_array_equal(old, now)
    assert all((leaf == 0).all() for leaf in leaves(result.ema))


def test_a_merged_model_holds_the_parameters_of_the_vector_in_their_order_and_places():
    model = small(seed=3)
    state = update.create_state(model, optax.sgd(1.0))
    assert state.params.shape == (sum(leaf.size for leaf in leaves(model)),)
    merged = update.merge(small(seed=4), state.params)
    for got, want in zip(leaves(merged), leaves(model), strict=True):
        np.testing.assert_array_equal(got, want)


def test_a_merged_model_does_not_share_the_memory_of_the_state():
    # The next step writes over the state's memory; aligned parts would be shared silently.
    step = update.make_step(small(), squared, update.adam(0.1, 100), 0.9)
    state = update.create_state(small(), update.adam(0.1, 100))
    merged = update.merge(small(), state.params)
    source = batches()
    for _ in range(3):
        state, _ = step(state, next(source), jax.random.key(0))
    for got, want in zip(leaves(merged), leaves(small()), strict=True):
        np.testing.assert_array_equal(got, want)


def test_an_optimiser_sees_the_parameters_one_by_one_with_their_names():
    def frozen(params):
        return jax.tree_util.tree_map_with_path(lambda path, _: "bias" in str(path), params)

    optimizer = optax.chain(optax.sgd(0.01), optax.masked(optax.set_to_zero(), frozen))
    trained = fit(steps=3, optimizer=optimizer).model
    changed = {"bias": [], "kernel": []}
    for name, old, new in zip(
        (str(path) for path, _ in jax.tree_util.tree_leaves_with_path(nnx.state(small()))),
        leaves(small()), leaves(trained), strict=True,
    ):  # fmt: skip
        changed["bias" if "bias" in name else "kernel"].append(not np.array_equal(old, new))
    assert changed["bias"] and not any(changed["bias"])
    assert changed["kernel"] and all(changed["kernel"])


def test_adam_on_the_vector_equals_adam_on_every_parameter():
    plain = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adam(optax.warmup_cosine_decay_schedule(3e-3, 3e-3, 0, 20)),
    )
    ours = fit(steps=20, optimizer=adam(3e-3, 20, warmup=0)).model
    theirs = fit(steps=20, optimizer=plain).model
    for got, want in zip(leaves(ours), leaves(theirs), strict=True):
        # The norm is summed in another order, and Adam divides by small numbers.
        np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-5)


def test_a_state_of_another_model_is_named():
    state = fit(steps=2, stop=1).state
    wider = MLP(2, width=32, depth=1, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="state must hold the model's"):
        fit(wider, steps=2, state=state)


def test_the_average_of_a_constant_is_that_constant():
    tree = {"a": jnp.array([1.7, -3.1]), "b": jnp.array(0.3)}
    average = tree
    for step in range(50):
        average = update.ema_update(average, tree, update.ema_decay(jnp.asarray(step), 0.99))
    # The update adds a multiple of (p − e) = 0, so there is no rounding at all.
    for name in tree:
        np.testing.assert_array_equal(average[name], tree[name])


def test_the_average_equals_the_weighted_sum_of_all_parameters():
    values = np.random.default_rng(1).normal(2.0, 3.0, 40)
    average, expected = jnp.float32(values[0]), values[0]
    for step, value in enumerate(values[1:]):
        d = min(0.9, (1 + step) / (10 + step))
        expected = d * expected + (1 - d) * value
        average = update.ema_update(average, jnp.float32(value), update.ema_decay(step, 0.9))
    assert float(average) == pytest.approx(expected, rel=1e-5)  # 40 roundings of float32


def test_a_run_averages_its_parameters_with_the_warm_up():
    seen = []
    fit(steps=12, save=loop.Save(1, lambda state: seen.append(jax.tree.map(np.array, state))))
    expected = np.concatenate([leaf.ravel() for leaf in leaves(small())]).astype(np.float64)
    for n, state in enumerate(seen):
        d = (1 + n) / (10 + n)  # far below the decay of .999
        expected = d * expected + (1 - d) * state.params
        np.testing.assert_allclose(state.ema, expected, rtol=1e-5, atol=1e-6)  # float32


@pytest.mark.parametrize("steps", [100, 2000])
def test_the_initial_weights_have_left_the_average_by_the_end(steps):
    kept = np.prod([float(update.ema_decay(n, 0.9999)) for n in range(steps)])
    assert kept < 0.01
    assert 0.9999**2000 > 0.8  # what remains without warm-up


def test_the_same_key_gives_the_same_run_and_another_key_another():
    one, same, other = (fit(loss=noisy, key=jax.random.key(k)) for k in (1, 1, 2))
    assert one.history.loss == same.history.loss
    assert one.history.loss != other.history.loss


def test_each_step_draws_noise_of_its_own():
    def draw(model, x, labels, key):
        return jnp.mean(jax.random.normal(key, (64,))) + 0 * model(x, labels / 10).sum()

    losses_ = fit(loss=draw, steps=12).history.loss
    assert len(set(losses_)) == 12


def test_an_interrupted_run_equals_an_uninterrupted_one_bit_for_bit():
    whole = fit(loss=noisy, steps=20)
    first = fit(loss=noisy, steps=20, stop=9)
    assert int(first.state.step) == 9 == len(first.history.loss)
    second = fit(loss=noisy, steps=20, state=first.state, data=batches(start=9))
    assert second.history.first_step == 10
    for a, b in zip(leaves(whole.state), leaves(second.state), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_state_to_go_on_from_survives_the_run():
    first = fit(steps=8, stop=4)
    fit(steps=8, state=first.state)
    assert int(first.state.step) == 4  # reading a donated buffer would raise


def test_clipping_bounds_the_update_of_plain_gradient_descent():
    optimizer = optax.chain(optax.clip_by_global_norm(0.01), optax.sgd(1.0))
    before, after = leaves(small()), leaves(fit(steps=1, optimizer=optimizer).model)
    moved = np.sqrt(sum(((a - b) ** 2).sum() for a, b in zip(after, before, strict=True)))
    assert moved == pytest.approx(0.01, rel=1e-3)  # float32 differences of weights near 1


@pytest.mark.parametrize("bad", [0, 7, 25, 29])
def test_a_loss_that_is_not_finite_stops_training_and_keeps_the_last_good_state(bad):
    cause = r"The cause is that step's batch: x is nan at index \[3, 1\] of shape \[32, 2\]"
    with pytest.raises(
        record.TrainingDiverged, match=f"step {bad + 1}: its loss is nan.*{cause}"
    ) as caught:
        fit(data=batches(bad=bad), optimizer=adam(3e-3, 30))
    assert "learning rate" not in str(caught.value)  # which has nothing to do with it
    result = caught.value.result
    assert caught.value.step == bad + 1
    assert int(result.state.step) == bad == len(result.history.loss)
    assert all(np.isfinite(leaf).all() for leaf in leaves(result.state))
    clean = fit(state=result.state, data=batches(start=bad), optimizer=adam(3e-3, 30))
    assert int(clean.state.step) == 30  # the kept state can be trained on
    if bad:
        good = fit(steps=bad, optimizer=adam(3e-3, 30))
        for a, b in zip(leaves(good.model), leaves(result.model), strict=True):
            np.testing.assert_array_equal(a, b)


def test_a_gradient_that_is_not_finite_stops_training_though_the_loss_is_finite():
    def loss(model, x, labels, key):
        return jnp.sqrt(jnp.abs(model(x, labels / 10)).sum())  # the square root's slope at 0

    with pytest.raises(record.TrainingDiverged, match="step 1"):
        fit(loss=loss)


def test_an_update_that_is_not_finite_stops_training_though_its_gradient_is():
    with pytest.raises(
        record.TrainingDiverged, match=r"step 1.*Try a lower learning rate"
    ) as caught:
        fit(optimizer=optax.sgd(3e38))
    assert all(np.isfinite(leaf).all() for leaf in leaves(caught.value.result.state))


def test_an_optimiser_that_remembers_the_start_does_not_share_its_buffers():
    def update(gradient, anchor, params):
        return jax.tree.map(lambda a, p: 0.5 * (a - p), anchor, params), anchor

    anchored = optax.GradientTransformation(lambda params: params, update)
    for a, b in zip(leaves(small()), leaves(fit(optimizer=anchored, steps=3).model), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)  # every step pulls to where it already is


def test_a_model_with_other_state_than_parameters_is_named():
    class Noisy(nnx.Module):
        def __init__(self):
            self.layer = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
            self.dropout = nnx.Dropout(0.5, rngs=nnx.Rngs(0))

    with pytest.raises(ValueError, match=r"^model must hold parameters only .* got Noisy"):
        fit(Noisy())
    with pytest.raises(ValueError, match=r"^teacher must hold parameters only .* got Noisy"):
        fit(loss=imitate, teacher=Noisy())


def test_states_are_saved_at_their_steps_and_at_the_end():
    seen = []
    result = fit(steps=25, save=loop.Save(10, lambda s: seen.append(jax.tree.map(np.array, s))))
    assert [int(s.step) for s in seen] == [10, 20, 25]
    for a, b in zip(leaves(seen[-1]), leaves(result.state), strict=True):
        np.testing.assert_array_equal(a, b)


def test_callbacks_get_the_averaged_model_at_their_steps_and_at_the_end():
    seen = []

    def look(step, model):
        seen.append((step, float(model(jnp.ones((1, 2)), jnp.ones(1)).sum()), model))

    result = fit(steps=25, callbacks=[loop.Callback(10, look)])
    assert [step for step, _, _ in seen] == [10, 20, 25]
    for a, b in zip(leaves(seen[-1][2]), leaves(result.ema), strict=True):
        np.testing.assert_array_equal(a, b)
    assert len({value for _, value, _ in seen}) == 3


def test_the_step_compiles_once():
    traces = []

    def loss(model, x, labels, key):
        traces.append(1)
        return squared(model, x, labels, key)

    fit(loss=loss)
    assert len(traces) == 1  # `loss` is new here, so no other test has compiled it


def test_the_history_plots_what_it_recorded():
    history = fit(steps=12).history
    ax = history.plot()
    np.testing.assert_allclose(ax.lines[0].get_ydata(), history.loss)
    assert ax.get_xlabel() == "training step"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps must be a whole number at least 1, got 0"),
        ({"steps": 7.5}, "steps must be a whole number at least 1, got 7.5"),
        ({"stop": 31}, r"stop must be a whole number in \[1, 30\], got 31"),
        ({"check_every": 0}, "check_every must be a whole number at least 1, got 0"),
        ({"callbacks": [loop.Callback(0, print)]}, "every must be a whole number at least 1"),
        ({"save": loop.Save(0, print)}, "every must be a whole number at least 1, got 0"),
        ({"ema": 1.0}, r"ema must be in \[0, 1\), got 1.0"),
        ({"data": list(zip([np.zeros((4, 2), np.float32)] * 3, [np.zeros(4, np.int32)] * 3,
                           strict=True))}, "batches must yield 30, ended after 3"),
    ],
)  # fmt: skip
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        fit(**options)


X, LABELS = np.ones((4, 2), np.float32), np.arange(4)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (X, "batches must yield pairs"),
        ((X,), "batches must yield pairs .x, labels., got 1 entries"),
        ({"x": X}, "batches must yield pairs .x, labels., got dict"),
        (
            (np.zeros((4, 2), np.uint8), LABELS),
            "first batch cannot be trained on: x must be floating-point .*uint8",
        ),
        ((np.float32(3), LABELS), r"at least one, got x \[\]"),
        ((X[:0], LABELS[:0]), r"at least one, got x \[0, 2\]"),
        ((X, LABELS + 1), "labels must be in 0 … 3, got 1 … 4"),
        ((X, LABELS - 1), "labels must be in 0 … 3, got -1 … 2"),
        ((X, LABELS + 0.7), "labels must be whole numbers of shape .*got float"),
        ((X, LABELS[:, None]), r"whole numbers of shape \[4\], got \w+ of shape \[4, 1\]"),
        ((X, LABELS[:3]), r"as many labels as examples.*labels \[3\]"),
        ((X, None), r"as many labels as examples.*labels \[\]"),
    ],
)
def test_a_batch_that_nothing_can_be_learnt_from_is_told_before_a_step(batch, message):
    model = MLP(2, width=16, depth=1, num_classes=4, rngs=nnx.Rngs(0))

    def loss(*_):
        raise AssertionError("a step was traced")

    with pytest.raises(ValueError, match=message):
        fit(model, loss, iter([batch] * 3), steps=3)


def test_what_a_loss_takes_apart_itself_is_left_to_it():
    model = MLP(2, width=16, depth=1, num_classes=4, rngs=nnx.Rngs(0))

    def loss(model, x, cond, key):
        labels, keep = cond
        return jnp.mean((model(x, jnp.zeros(len(x)), labels) * keep - x) ** 2)

    batch = (X, (LABELS, np.ones((4, 2), np.float32)))
    assert np.isfinite(fit(model, loss, iter([batch] * 2), steps=2).history.loss).all()


def test_pixels_that_nobody_scaled_are_told_when_training_diverges():
    x = np.full((4, 2), 255.0, np.float32)
    with pytest.raises(
        record.TrainingDiverged, match=r"reaches .x. = 255; images belong in \[-1, 1\]"
    ):
        fit(data=iter([(x, LABELS)] * 3), steps=3, optimizer=optax.sgd(3e38))


def test_a_vector_of_another_model_is_not_merged():
    with pytest.raises(ValueError, match=r"vector must hold the model's \d+ parameters .*\[5\]"):
        update.merge(small(), jnp.zeros(5))


def test_the_running_average_has_a_range():
    with pytest.raises(ValueError, match=r"smooth must be in \[0, 1\), got 1"):
        record.History(loss=[1.0]).plot(smooth=1.0)


def test_a_state_past_the_end_is_an_error():
    result = fit(steps=5)
    with pytest.raises(ValueError, match="must exceed the state's 5 steps, got 5"):
        fit(steps=5, state=result.state)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((-1.0, 10), "learning_rate must be positive and finite, got -1.0"),
        ((np.inf, 10), "learning_rate must be positive and finite, got inf"),
        ((0.1, 10, None, 0.0), "clip must be positive and finite, got 0.0"),
        ((0.1, 0), "steps must be a whole number at least 1, got 0"),
        ((0.1, 30, 30), r"warmup must be a whole number in \[0, 29\], got 30"),
    ],
)
def test_bad_settings_of_adam_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        update.adam(*arguments)


def test_the_learning_rate_climbs_from_its_first_stair_and_falls_to_zero():
    params = {"x": jnp.zeros(1)}
    optimizer = update.adam(0.1, steps=50, warmup=5, clip=1e9)
    state, sizes = optimizer.init(params), []
    for _ in range(50):
        change, state = optimizer.update({"x": jnp.ones(1)}, state, params)
        sizes.append(-float(change["x"][0]))  # for a constant gradient Adam's step is its rate
    assert sizes[0] == pytest.approx(0.02, rel=1e-3)
    assert max(sizes) == pytest.approx(0.1, rel=1e-3) and np.argmax(sizes) == 5
    assert sizes[-1] < 0.001


# --- a teacher, and targets from the averaged weights ---------------------------------------
def awake(seed):
    """A network whose last layer is not 0, as in a new one."""
    draw = np.random.default_rng(seed)
    noised = lambda a: a + 0.2 * draw.normal(size=a.shape).astype(np.float32)  # noqa: E731
    graph, params = nnx.split(small())
    return nnx.merge(graph, jax.tree.map(noised, params))


def imitate(model, x, labels, key, *, teacher):
    return jnp.mean((model(x, labels / 10) - teacher(x, labels / 10)) ** 2)


def test_a_student_comes_to_its_teacher_which_stays_as_it_is():
    teacher = awake(3)
    before = leaves(teacher)
    result = fit(loss=imitate, teacher=teacher, steps=200)
    assert np.mean(result.history.loss[-20:]) < 0.05 * result.history.loss[0]
    assert all(np.array_equal(a, b) for a, b in zip(before, leaves(teacher), strict=True))


def test_another_teacher_of_the_same_structure_is_not_compiled_anew():
    fit(loss=imitate, teacher=awake(3), steps=1)
    count = len(PROGRAMS)
    first = fit(loss=imitate, teacher=awake(4), steps=1).history.loss
    second = fit(loss=imitate, teacher=awake(5), steps=1).history.loss
    assert len(PROGRAMS) == count and first != second
    program = next(p for k, p in PROGRAMS.items() if k[1] is imitate)
    assert program._cache_size() == 1  # weights in the program would make it one for each teacher


def drag(model, x, labels, key, *, averaged):
    """Tells the distance of the trained weights to the averaged ones, which have no gradient."""
    pairs = zip(*(jax.tree.leaves(nnx.state(m)) for m in (model, averaged)), strict=True)
    return sum(jnp.sum((a - b) ** 2) for a, b in pairs) + jnp.sum(averaged(x, labels / 10) * 0 + 1)


def test_a_loss_sees_the_averaged_weights_of_before_the_step():
    """Step by step by hand: without a gradient at first, all stays; the loss is the constant."""
    result = fit(loss=drag, averaged=True, steps=3)
    np.testing.assert_array_equal(result.history.loss, [64.0] * 3)  # 32 examples of 2 numbers
    assert all(np.array_equal(a, b) for a, b in
               zip(leaves(small()), leaves(result.model), strict=True))  # fmt: skip


def along(model, x, labels, key, *, averaged):
    """The gradient of the weights' sum is 1; that of the averaged ones' would make it 0."""
    total = lambda m: sum(jnp.sum(leaf) for leaf in jax.tree.leaves(nnx.state(m)))  # noqa: E731
    return total(model) - total(averaged)


def test_no_gradient_flows_into_the_averaged_weights_and_they_follow():
    sgd = optax.sgd(0.25)
    result = fit(loss=along, averaged=True, optimizer=sgd, steps=3, ema=0.5)
    count = sum(leaf.size for leaf in leaves(small()))
    # Each step lowers every weight by .25. The average keeps d = .1, then 2/11, then 3/12 of
    # itself: its lag behind the weights is d·(lag + .25).
    lags, lag = [], 0.0
    for n in range(3):
        lags.append(-count * lag)
        lag = (1 + n) / (10 + n) * (lag + 0.25)
    np.testing.assert_allclose(result.history.loss, lags, rtol=1e-3, atol=1e-2)
