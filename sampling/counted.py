"""How often networks are called: what a sample costs on any machine."""


class Counted:
    """A score network or log-ratio that counts its `calls`."""

    def __init__(self, network):
        self._network, self.calls = network, 0

    def __getattr__(self, name):
        return getattr(self._network, name)

    def __call__(self, *args):
        self.calls += 1
        return self._network(*args)

    def value_and_grad(self, *args):
        self.calls += 1
        return self._network.value_and_grad(*args)
