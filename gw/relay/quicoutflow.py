"""What goes out over one QUIC connection of a relay, and how long the other end may take nothing of it. No I/O.

Packets of `Port.out` become datagrams, in two parts where the path is narrow; other frames go on the control stream.

Ref: spec quic §8, §11
"""

from __future__ import annotations

from typing import Final, final

from gw.native.relaying import Port, Switch
from gw.quic.link import Link
from gw.quic.patience import NEVER, Patience
from gw.wire.quic import frames
from gw.wire.quic.datagrams import KEY_BYTES, encode_packet
from gw.wire.quic.flows import Flows


@final
class Outflow:
    """`pour`, then poll the link, then `poured`."""

    def __init__(self, switch: Switch, port: Port, link: Link) -> None:
        self._switch = switch
        self._port = port
        self._link = link
        self.flows: Final = Flows(port.numbers, port.keys)
        self._packets_wait, self._control_waits = Patience(), Patience()
        self._parts = 0
        self.patient_until = NEVER  # when it is closed, if it takes nothing until then

    def pour(self, now: float) -> None:
        """Give the link what is in `Port.out`, unless it still has datagrams waiting."""
        switch, link, port = self._switch, self._link, self._port
        self.patient_until = min(
            self._packets_wait.look(link.waiting > 0, link.delivered, link, now),
            self._control_waits.look_at_control(link, now),
        )
        if self.patient_until <= now:
            link.close(frames.CLOSED, "takes nothing of what waits for it")
            self.patient_until = NEVER
        if link.waiting:
            switch.set_aside(port)
            return
        small, control, large = switch.take_datagrams(port, link.limit)
        if port.wants:
            if link.unsent <= frames.MAX_UNSENT_BYTES:
                control += b"".join(map(self.flows.want, port.wants))
            port.wants.clear()
        if control:
            link.send_stream(control)
        if small:
            link.send_frames(small)
        head = 2 * KEY_BYTES if port.is_mesh else KEY_BYTES
        for packet in large:
            self._parts += 1
            for part in encode_packet(packet[:head], packet[head:], link.limit, self._parts):
                link.send(part)

    def flow_untrusted(self, kind: int, body: bytes) -> None:
        """A FLOW_OPEN, FLOW_OK or FLOW_CLOSE of the other end. Raises WireError. Who takes no answers gets none."""
        if kind != frames.FLOW_OPEN or self._link.unsent <= frames.MAX_UNSENT_BYTES:
            answer = self.flows.frame_untrusted(kind, body)
            if answer:
                self._link.send_stream(answer)

    def poured(self) -> None:
        """Where nothing waits in the link any more, what the queues hold goes out next."""
        port = self._port
        if port.is_blocked and not self._link.waiting and not port.is_closed:
            self._switch.taken(port)
        elif self._link.waiting:
            port.is_blocked = True
