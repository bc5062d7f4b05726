r"""Generated worlds: synthetic logs whose next-item distributions are known (ours).

The users of a world have stable tastes over categories of items, and habits: short sequences of
items that recur. Their events come in sessions with irregular gaps. A short burst may replace the
taste, an item may be a successor of the last item, and tastes drift over long absences. Symbols
are those of `WorldConfig`; U users, N items, C categories; [...] is 1 if true, else 0.

**Items.** The item of rank r has popularity w_i ∝ r^-s, Σ_i w_i = 1. Ranks and categories are
random. W_c = Σ_{i in c} w_i is the popularity of category c, and w(i|c) = w_i / W_c that of an item
in its category. Each item j has S successors, drawn from w(.|c(j)) with probability
`successor_within`, else from w:

    f(i|j) = Σ_s v_s [i is the s-th successor of j],   v_s ∝ 1/s

**Users.** Each user has a taste π ~ Dirichlet(kappa · W). The mean over users is W, so that
browsing follows Zipf's law over all users together. Each user has M habits q_m of L items. Each
item of a habit is drawn from w(.|c), c ~ π. A user turns to habit m with probability ν_m ∝ 1/m.

**Events.** The state after an event is: the taste π; the category b of the current burst, or none;
the current habit m and the number p of its items so far, with p = 0 for no current habit; the last
item j. The next event is drawn in this order:

    gap        new ~ Bernoulli(eta): the event begins a session; then absent ~ Bernoulli(alpha)
               not new:  g = min(⌊X⌋, G_1 - 1),       X log-normal with median `session_gap`
               new:      g = min(G_1 + ⌊X⌋, G_2 - 1), X log-normal with median `return_gap`
               absent:   g = G_2 + n,                 n = ⌊Exponential(mean tau)⌋
    drift      absent:   π ← e^(-n/h) π + (1 - e^(-n/h)) ξ,   ξ ~ Dirichlet(kappa · W)
    burst      ends if new, else with probability b_-; if there is none, or it has just ended, a
               burst in category c ~ W starts with probability b_+
    habit      ends if new
    item       p > 0:     1 - delta   the next item of the habit; the habit ends with its last item
                          delta       an ordinary item; the habit stays current
               p = 0:     mu          the first item of a habit m ~ ν, which becomes current
                          1 - mu      an ordinary item
    ordinary   not new:   rho         i ~ f(.|j)
               else                   i ~ w(.|b) in a burst; without a burst c ~ π, i ~ w(.|c)

The first event of a history is new and never absent.

**Oracle.** Given the state, the draws are independent of each other, and every probability is
linear in the unknown quantities. If the gap is hidden, the distribution of the next item is

    p(i) = (1 - eta) P(i) + eta Q(i)

    P(i) = (p > 0) (1 - delta) [i = q_m,p+1] + (p = 0) mu a(i) + o (rho f(i|j) + (1 - rho) B(i))
    Q(i) = mu a(i) + (1 - mu) Σ_c (b_+ W_c + (1 - b_+) π'_c) w(i|c)

    o    = delta if p > 0 else 1 - mu
    a(i) = Σ_m ν_m [i = q_m,1]
    B(i) = l w(i|b) + (1 - l) Σ_c (b_+ W_c + (1 - b_+) π_c) w(i|c)
    l    = 1 - b_- in a burst, else 0
    π'   = R π + (1 - R) W
    R    = 1 - alpha + alpha (1 - e^(-1/tau)) / (1 - e^(-1/tau - 1/h))         by E e^(-n/h)

If the gap is known, eta becomes 0 or 1, and R becomes e^(-n/h), or 1 without an absence. The oracle
knows the past and the state, but not the ξ of an absence that begins with the next event.
"""

from linseqrec.data.worlds.config import WorldConfig, WorldError, resized, world_config
from linseqrec.data.worlds.generation import BROWSE, BURST, HABIT, SUCCESSION, World, generate
from linseqrec.data.worlds.oracle import oracle_scores

__all__ = [
    "BROWSE",
    "BURST",
    "HABIT",
    "SUCCESSION",
    "World",
    "WorldConfig",
    "WorldError",
    "generate",
    "oracle_scores",
    "resized",
    "world_config",
]
