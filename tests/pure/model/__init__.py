"""An explicit-state model checker of the safety protocol, with the product's own pure code in it.

`vfio_operator.plan.plan` (through a real `Observed`) and `vfio_agent.machine` (admit, rounds, ...) decide; modelled is
what lies around them: effects of the operator and of the agents, devices, journal and keeper, the store with its
write-once decision, connections, and faults of all of these within bounds. Each module says which code it stands for.

state: what a state is made of. agents: a participant's own steps. leader: the operator's. faults: what breaks.
system: all of it together, one step at a time. invariants: I1 to I3, and the end (I4). explore: every reachable state.
liveness: from any state, what happens once nothing breaks any more. walks: random search beyond the bounds.
"""
