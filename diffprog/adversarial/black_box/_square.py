"""Square attack: random search by squares of one colour. It asks for logits, never for a gradient.

    r'      = r with another content in a square of side s_k, at a place drawn uniformly
    r_{k+1} = r' if loss(x + r') > loss(x + r) or f is fooled at x + r', else r

What a square holds is extreme, since the most harmful perturbations of a ball lie on its border: `_squares` has the proposals of each
norm. The share p_k of the image that a square covers is halved nine times on the way: coarse changes first, then single pixels; with l2 two
by two, since no pixel by itself can carry an even share of the length.

With linf each square of the last side is drawn with a chance of at least 1 / N, N = places x 2^channels, of one channel N = places. A
restart is over for an example where N (ln N + 5) in a row were refused: with a chance of 1 - e^-5 all were tried by then, r is the best
among its neighbours, and more queries would repeat themselves. So on 8 x 8 pixels it takes some 1500 of 5000 queries, and on 32 x 32 all.

Sources: M. Andriushchenko, F. Croce, N. Flammarion and M. Hein, "Square attack: a query-efficient black-box adversarial attack via random
search", 2020; the l1 ball, F. Croce and M. Hein, "Mind the box", 2021.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Integer

from diffprog import _validation, norms
from diffprog.adversarial._base import (
    Attack,
    Bounds,
    Flat,
    PerExample,
    Problem,
    Search,
    make_attack,
    per_example_epsilon,
)
from diffprog.adversarial._losses import Loss, is_adversarial
from diffprog.adversarial.black_box._squares import (
    PROPOSALS,
    draws_of_all,
    frame_of,
    side_of,
    stripes,
)
from diffprog.adversarial.gradient._pgd import resolve_loss

# Where p is halved, as shares of the queries: those of the paper, which states them for 10,000 queries.
_HALVINGS = (0.001, 0.005, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8)


def square(
    *,
    norm: str = "linf",
    epsilon: Any = 0.1,
    queries: int = 5000,
    p: float = 0.8,
    loss: str | Loss = "margin",
    restarts: int = 1,
    bounds: Bounds = (0.0, 1.0),
    targeted: bool = False,
) -> Attack:
    """Square attack: r' replaces r where the loss of x + r' is larger; r' differs from r in a random square.

    Args:
        norm: "linf", "l2" or "l1".
        epsilon: the radius, one for all or one for each example.
        queries: how many values of f each restart may ask for, at least 1; an example that is found asks no more, nor one that no square of
            the last side makes better. 5000 is the paper's.
        p: the share of the image that the first squares cover, in 0 .. 1; 0.8 is what the attack has in AutoAttack.
        loss: "margin", "cross_entropy", "dlr", or a function (logits, y, targeted) -> (batch,) that grows towards what is wanted.
        restarts: how many searches, each with its own draws, for the examples that are not found yet.
        bounds: (low, high) of every number of x.
        targeted: whether y is the target.

    Raises:
        TypeError, ValueError: an argument that is none of these.

    Source: Andriushchenko, Croce, Flammarion and Hein 2020.

    >>> attack = square(epsilon=0.3, queries=20)
    >>> print(attack(lambda x: x @ jnp.eye(2), jnp.array([[0.7, 0.4]]), jnp.array([0]), key=jax.random.key(0)).success)
    [ True]
    """
    _validation.choice("norm", norm, PROPOSALS)
    per_example_epsilon(epsilon, None, jnp.float32)
    propose, value = PROPOSALS[norm], resolve_loss(loss)
    allowed, runs = (
        jnp.int32(_validation.integer(*named, low=1))
        for named in (("queries", queries), ("restarts", restarts))
    )
    share = jnp.float32(_validation.number("p", p, above=0, high=1))

    def search(problem: Problem) -> Search:
        frame = frame_of(problem)
        least = side_of(frame, share * 0.5 ** len(_HALVINGS), 1)
        patience = draws_of_all(frame, least) if problem.norm is norms.linf else jnp.inf

        def offered(kept: _Kept, r: Flat, query: Array, restart: Array) -> _Kept:
            logits = problem.perturbed_logits(r)
            loss = value(logits, problem.y, problem.targeted)
            return kept.or_else(
                r, loss, is_adversarial(logits, problem.y, problem.targeted), query, restart
            )

        def climb(restart: Array, best: _Kept) -> _Kept:
            keys = jax.vmap(jax.random.fold_in, (0, None))(problem.keys, restart)
            fresh = best._replace(loss=jnp.full_like(best.loss, -jnp.inf), over=best.found)
            first = offered(fresh, stripes(problem, keys), jnp.int32(0), restart)

            def ask(query: Array, kept: _Kept) -> _Kept:
                own = jax.vmap(jax.random.fold_in, (0, None))(keys, query)
                covered = share * 0.5 ** (query > allowed * jnp.array(_HALVINGS)).sum()
                offer = offered(kept, propose(problem, own, kept.r, covered), query, restart)
                return offer.after(side_of(frame, covered, 1) == least, patience)

            return _until_all(lambda kept: kept.over, ask, first, jnp.int32(1), allowed).at_least(
                best
            )

        none = jnp.zeros_like(problem.y)
        nothing = _Kept(
            jnp.zeros_like(problem.x),
            jnp.full_like(problem.epsilon, -jnp.inf),
            none > 0,
            none > 0,
            none,
            none - 1,
            none,
            none,
        )
        kept = _until_all(lambda kept: kept.found, climb, nothing, jnp.int32(0), runs)
        return Search(kept.r, kept.step, kept.restart, none, kept.queries)

    return make_attack(
        "square",
        search,
        norm=norm,
        epsilon=epsilon,
        bounds=bounds,
        targeted=targeted,
        uses_gradients=False,
    )


class _Kept(NamedTuple):
    """What the search of each example keeps.

    Attributes:
        r: (batch, n), the perturbation.
        loss: (batch,), its loss; never NaN.
        found: (batch,), whether it has what is wanted.
        over: (batch,), whether it stays as it is: found, or no square makes it better.
        idle: (batch,), the last squares that were refused.
        step: (batch,), the query that found it, or -1.
        restart: (batch,), the restart of r.
        queries: (batch,), the values of f that it took to get here.
    """

    r: Flat
    loss: PerExample
    found: Bool[Array, "batch"]
    over: Bool[Array, "batch"]
    idle: Integer[Array, "batch"]
    step: Integer[Array, "batch"]
    restart: Integer[Array, "batch"]
    queries: Integer[Array, "batch"]

    def or_else(
        self, r: Flat, loss: PerExample, hit: Bool[Array, "batch"], query: Array, restart: Array
    ) -> "_Kept":
        """This, or the proposal where it is better."""
        hit = hit & ~self.over
        taken = hit | ((loss > self.loss) & ~self.over)
        return _Kept(
            jnp.where(taken[:, None], r, self.r),
            jnp.where(taken & ~jnp.isnan(loss), loss, self.loss),
            self.found | hit,
            self.over | hit,
            jnp.where(taken, 0, self.idle + 1),
            jnp.where(hit, query, self.step),
            jnp.where(taken, restart, self.restart),
            self.queries + ~self.over,
        )

    def after(self, smallest: Array, patience: Any) -> "_Kept":
        """This, over where so many squares of the smallest side in a row were refused."""
        idle = jnp.where(smallest, self.idle, 0)
        return self._replace(idle=idle, over=self.over | (idle >= patience))

    def at_least(self, best: "_Kept") -> "_Kept":
        """This, or `best` where an earlier restart came further; the queries of both."""
        better = self.found | (self.loss > best.loss)
        chosen = jax.tree.map(
            lambda new, old: jnp.where(better.reshape(-1, *[1] * (new.ndim - 1)), new, old),
            self,
            best,
        )
        return chosen._replace(queries=self.queries)


def _until_all(
    done: Callable[[_Kept], Array],
    body: Callable[[Array, _Kept], _Kept],
    start: _Kept,
    first: Array,
    last: Array,
) -> _Kept:
    """A loop over first .. last - 1 that ends early where all are done."""
    advance = lambda carried: (carried[0] + 1, body(*carried))
    return jax.lax.while_loop(
        lambda carried: (carried[0] < last) & ~done(carried[1]).all(), advance, (first, start)
    )[1]
