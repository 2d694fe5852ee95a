"""The flow contract over random shapes: the inverse, and log_det against autograd's Jacobian, in float64."""

import torch
from flow_helpers import CONTEXT_DIM, context_for, rows
from hypothesis import given, settings
from hypothesis import strategies as st
from random_subnets import randomize

from posthoc_inn.config import FlowConfig
from posthoc_inn.flows import COUPLINGS, CouplingFlow
from posthoc_inn.flows.subnet import ACTIVATIONS

few = settings(max_examples=40, deadline=None, derandomize=True, database=None)

CONFIGS = st.builds(
    FlowConfig,
    dim=st.integers(2, 9),
    context_dim=st.sampled_from([0, 1, CONTEXT_DIM]),
    kind=st.sampled_from(sorted(COUPLINGS)),
    blocks=st.integers(1, 4),
    width=st.integers(1, 24),
    depth=st.integers(1, 3),
    separate_nets=st.booleans(),
    scale_bound=st.floats(0.25, 2.0),
    bins=st.integers(2, 9),
    tail=st.floats(0.5, 6.0),
    dropout=st.sampled_from([0.0, 0.3]),
    activation=st.sampled_from(sorted(ACTIVATIONS)),
    seed=st.integers(-(2**62), 2**62),
)


def initialized(config):
    flow = randomize(CouplingFlow(config), scale=0.7).double()
    flow.initialize(rows(64, config.dim), context_for(flow, 64))
    return flow


@few
@given(config=CONFIGS, seed=st.integers(0, 1000))
def test_the_inverse_undoes_forward_and_forward_undoes_the_inverse(config, seed):
    flow = initialized(config).eval()
    x, context = rows(5, config.dim, seed=seed), context_for(flow, 5, seed=seed)
    with torch.no_grad():
        y, log_det = flow(x, context)
        torch.testing.assert_close(flow.inverse(y, context), x, atol=1e-7, rtol=1e-7)
        torch.testing.assert_close(flow(flow.inverse(x, context), context)[0], x, atol=1e-7, rtol=1e-7)
    assert log_det.shape == (5,)


@few
@given(config=CONFIGS, seed=st.integers(0, 1000))
def test_log_det_is_that_of_the_autograd_jacobian_in_training_as_in_use(config, seed):
    flow = initialized(config.replace(dropout=0.0))
    x, context = rows(2, config.dim, seed=seed), context_for(flow, 2, seed=seed)
    # The fast path in training, the readable one in use.
    y, log_det = flow.train()(x, context)
    y_in_use, log_det_in_use = flow.eval()(x, context)
    torch.testing.assert_close(y, y_in_use, atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(log_det, log_det_in_use, atol=1e-9, rtol=1e-9)
    for i in range(2):
        row_context = None if context is None else context[i]
        jacobian = torch.autograd.functional.jacobian(lambda r, c=row_context: flow(r, c)[0], x[i])
        torch.testing.assert_close(torch.linalg.slogdet(jacobian)[1], log_det[i], atol=1e-7, rtol=1e-7)
