"""The whole of `vsd serve`: settings in, a running server out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from vlm_spec_decode.core.config import check_ranges
from vlm_spec_decode.edge.factory import check_settings as check_edge
from vlm_spec_decode.edge.protocol_timing import ProtocolTiming
from vlm_spec_decode.edge.settings import EdgeSettings
from vlm_spec_decode.mission.connection import EdgeEngineSource
from vlm_spec_decode.mission.state import MissionStatus
from vlm_spec_decode.serve.access import (
    AccessKeys,
    BindAddress,
    HttpLimits,
    TlsFiles,
    bind_address,
    check_exposure,
    read_keys,
    tls_files,
)
from vlm_spec_decode.serve.openai_api.app import Endpoint, make_app
from vlm_spec_decode.serve.openai_api.pictures import PictureLimits, check_hosts
from vlm_spec_decode.serve.openai_api.preparation import RequestPreparer
from vlm_spec_decode.serve.openai_api.service import AnswerService
from vlm_spec_decode.serve.openai_api.settings import KEY_VARIABLE, ServeSettings, check_settings
from vlm_spec_decode.serve.server import HttpServer

MEBI = 1 << 20


@dataclass(frozen=True, slots=True)
class CheckedSettings:
    """Settings that hold, and what they name: read before a model is loaded."""

    serve: ServeSettings
    edge: EdgeSettings
    address: BindAddress
    keys: AccessKeys
    tls: TlsFiles | None
    pictures: PictureLimits


def check(serve: ServeSettings, edge: EdgeSettings) -> CheckedSettings:
    """Check settings as far as that needs no model. Raises ConfigError."""
    check_ranges(serve)
    check_settings(serve, edge.cloud)
    check_edge(edge)
    address, keys = bind_address(serve.bind), read_keys(serve.api_keys, KEY_VARIABLE)
    check_exposure(address, keys)
    tls = tls_files(serve.tls_cert, serve.tls_key)
    pictures = PictureLimits(
        max_bytes=serve.max_body_mib * MEBI,
        max_pixels=round(serve.max_megapixels * 1e6),
        hosts=check_hosts(serve.allow_url_host),
    )
    return CheckedSettings(serve, edge, address, keys, tls, pictures)


class OpenAiServer:
    """The endpoint of one engine on one address. `report` gets the connection's states.

    Raises ConfigError or ModelError when it is made. A cloud that is away is none: it is tried again.
    """

    def __init__(
        self, serve: ServeSettings, edge: EdgeSettings, report: Callable[[MissionStatus], None] | None = None
    ) -> None:
        checked = check(serve, edge)
        source = EdgeEngineSource(edge)
        limits = HttpLimits(body_bytes=serve.max_body_mib * MEBI, body_s=serve.body_timeout_s)
        preparer = RequestPreparer(
            pictures=checked.pictures,
            longest_answer=serve.longest_answer,
            grammar=edge.grammar,
            sees=source.sees,
        )
        self.service = AnswerService(source, serve, report)
        self.endpoint = Endpoint(self.service, preparer, serve)
        # Bound before the engine is connected: a port that is taken is said at once.
        self._http = HttpServer(
            make_app(self.endpoint, checked.keys, limits), checked.address, checked.tls, limits
        )
        self.url = self._http.url
        try:
            self.service.start()
        except BaseException:
            self._http.close()
            raise

    def serve(self) -> None:
        """Serve in this thread until a signal or `close`."""
        try:
            self._http.serve()
        finally:
            self.close()

    def start(self) -> None:
        """Serve on a thread of its own."""
        self._http.start()

    def close(self) -> None:
        """End all answers, the server and the connection. Idempotent."""
        self._http.close()
        self.service.close()


def edge_timing(silence_s: float, connect_s: float) -> ProtocolTiming:
    """Return the time-outs with which a lost cloud is noticed after `silence_s`."""
    return ProtocolTiming.walking(silence_s, connect_s)
