"""What a server counts, as Prometheus reads it."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class ServerMetrics:
    """The counters of one server, in a registry of their own."""

    def __init__(self) -> None:
        self._registry = own = CollectorRegistry()
        name = "dual_precision_{}".format
        self.requests = Counter(
            name("requests"), "Requests to /predict", ["asked", "status"], registry=own
        )
        self.images = Counter(name("images"), "Images answered", ["asked", "mode"], registry=own)
        self.seconds = Histogram(
            name("latency_seconds"), "Of a request", ["mode"], buckets=_BUCKETS, registry=own
        )
        self.bit_operations = Counter(
            name("bit_operations"), "BitOps spent, by the model of costs", registry=own
        )
        self.waiting = Gauge(name("waiting_images"), "Images that wait", registry=own)
        self.chosen = Gauge(
            name("budget_mode"), "1 of the mode that a budget chose", ["mode"], registry=own
        )
        self.switches = Counter(name("budget_switches"), "Changes of mode", registry=own)
        self.complete = Gauge(
            name("complete"), "1 where all modes are loaded, 0 before", registry=own
        )

    def text(self) -> bytes:
        """The page /metrics."""
        return generate_latest(self._registry)
