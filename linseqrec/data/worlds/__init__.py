r"""Generated worlds: synthetic logs whose next-item distributions are known (ours).

Users with stable tastes over categories of items, short bursts of another intent, sessions with
irregular gaps, items that follow on from items, habits that recur, and tastes that drift over long
absences. Symbols are those of `WorldConfig`; U users, N items, C categories.

**Items.** The item of rank r has popularity w_i ∝ r^-s, Σ_i w_i = 1; ranks and categories are
dealt out at random. W_c = Σ_{i in c} w_i, and w(i|c) = w_i / W_c within category c. Each item j
has S successors; each is drawn by w(.|c(j)) with probability `successor_within`, else by w:
f(i|j) = Σ_s v_s [i is j's s-th successor], v_s ∝ 1/s.

**Users.** Tastes π ~ Dirichlet(kappa · W), so that browsing is Zipf over all users together; and M
habits q_m of L items each, every one drawn by w(.|c), c ~ π; ν_m ∝ 1/m.

**Events.** The state after an event is (π, burst b or none, habit m with p of its items been
or none under way, last item j). Of the next event, in this order:

    gap        new ~ Bernoulli(eta) says if it begins a session; then absent ~ Bernoulli(alpha)
               not new:  g = min(⌊X⌋, G_1 - 1),       X log-normal about `session_gap`
               new:      g = min(G_1 + ⌊X⌋, G_2 - 1), X log-normal about `return_gap`
               absent:   g = G_2 + n,                 n = ⌊Exponential(mean tau)⌋
    drift      absent:   π ← e^(-n/h) π + (1 - e^(-n/h)) ξ,   ξ ~ Dirichlet(kappa · W)
    burst      new ends it, else b_- does; where there is none (now), b_+ starts one in c ~ W
    habit      new ends it
    item       habit under way:   1 - delta   the habit's next item; it ends with its last
                                  delta       an ordinary item; the habit waits
               none under way:    mu          the first item of habit m ~ ν, now under way
                                  1 - mu      an ordinary item
    ordinary   not new:           rho         i ~ f(.|j)
               else                           i ~ w(.|b), or c ~ π, i ~ w(.|c) without a burst

The first event of a history is new, and never absent.

**Oracle.** Each draw is independent of the others given the state, and every probability is
linear in what is not known yet, so that the next item's distribution is, with the gap hidden,

    p(i) = (1 - eta) P(i) + eta Q(i)

    P(i) = (p > 0) (1 - delta) [i = q_m,p+1] + (p = 0) mu a(i) + o (rho f(i|j) + (1 - rho) B(i))
    Q(i) = mu a(i) + (1 - mu) Σ_c (b_+ W_c + (1 - b_+) π'_c) w(i|c)

    o    = delta if p > 0 else 1 - mu
    a(i) = Σ_m ν_m [i = q_m,1]
    B(i) = l w(i|b) + (1 - l) Σ_c (b_+ W_c + (1 - b_+) π_c) w(i|c)
    l    = 1 - b_- in a burst, else 0
    π'   = R π + (1 - R) W
    R    = 1 - alpha + alpha (1 - e^(-1/tau)) / (1 - e^(-1/tau - 1/h))         by E e^(-n/h)

Where the gap is known, eta becomes 0 or 1 and R becomes e^(-n/h), or 1 without an absence.
Note what is not in the state: ξ of an absence to come. The oracle knows all that has been.
"""

from linseqrec.data.worlds.catalogue import Catalogue
from linseqrec.data.worlds.config import WorldConfig, WorldError, resized, world_config
from linseqrec.data.worlds.generation import BROWSE, BURST, HABIT, SUCCESSION, Latents
from linseqrec.data.worlds.world import World, generate, load_world, write_world

__all__ = [
    "BROWSE",
    "BURST",
    "HABIT",
    "SUCCESSION",
    "Catalogue",
    "Latents",
    "World",
    "WorldConfig",
    "WorldError",
    "generate",
    "load_world",
    "resized",
    "world_config",
    "write_world",
]
