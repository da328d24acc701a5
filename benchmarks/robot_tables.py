"""What the figures of benchmarks/robot.py are called in the documents, and the table of its processes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lib.energy import watts

MEANINGS = {
    "idle_locomotion_cores": "the locomotion node while nothing is asked, share of a core",
    "idle_nodes_cores": "all nodes but the console's",
    "idle_console_closed_cores": "all nodes, the console served, no page open",
    "idle_console_open_cores": "all nodes, a page open with the video",
    "overlay_p95_s": "frame to overlay at 10 Hz, 95th percentile, s",
    "e_stop_p99_s": "e-stop call until the robot's service hears the stop, 99th percentile, s",
    "e_stop_time_ratio": "from there to standstill at top speed, over what the body alone needs: time",
    "e_stop_way_ratio": "the same: distance",
    "scan_contacts": "contacts with what only a scan shows, put in the way while walking",
    "obstacle_contacts": "contacts with what the robot's own ranges show, put in the way while walking",
    "locomotion_killed_kept": "locomotion node killed: at rest within the robot's own expiry and braking",
    "camera_frozen_kept": "camera frozen: nothing done on a frame that is too old",
    "vlm_killed_s": "VLM node killed while walking, until the robot's service hears the stop, s",
    "cloud_lost_fallback_s": "cloud killed, cut or frozen in the middle of an answer, until the fallback, s",
    "cloud_lost_kept": "the same: no motion on tokens that are not verified",
    "gate_beyond_limits": "random and adversarial plans through the gate: beyond a limit",
    "start_beyond_limits": "start on the draft, drafts that err: beyond their turn, 0.3 m, speed or fence",
    "start_corrected_s": "the same: the cloud's other action arrives until the stop is commanded, s",
    "start_corrected_gap_m": "the same: end of the corrected action, from where it would have led, 95 %, m",
    "start_late_moves": "the same, answers over 5 s late: motions on a frame that is too old",
    "start_contacts": "the same, beside and before things: contacts",
    "faults_beyond_limits": "late, unordered or repeated messages, jumps, a slow camera: beyond a limit",
    "faults_too_old": "the same: motions on a frame that is too old",
    "faults_uncommitted": "the same: plans of words that are not committed",
    "faults_outdated": "the same: motions by a plan that was replaced, or after the mission's end",
    "faults_late_gap_m": "the same: end of a plan told anew, from where its answer led, 99 %, m",
    "states_e_stop_s": "e-stop in each state of the ways to wait less, virtual time, until the stop, s",
    "states_vlm_killed_s": "the same: VLM node killed, s",
    "states_cloud_lost_s": "the same: cloud lost, s",
    "states_nodes_e_stop_s": "e-stop in each of these states, real nodes, until the service hears it, s",
    "states_nodes_vlm_killed_s": "the same: VLM node killed, until the robot's service hears the stop, s",
    "states_nodes_cloud_lost_s": "the same: link cut, until the fallback, s",
    "missions_time_ratio": "missions over DDS, a hardware profile: time with the defaults over that before",
}


def processes_table(document: Mapping[str, Any]) -> str:
    """Return a row for each process, and one for all."""
    states = ("idle", "open", "busy")
    rows = ["| process | idle | console's page open | on a mission, page open | resident, MB | share, MB |"]
    rows.append("| --- | --- | --- | --- | --- | --- |")
    processes = document["processes"]
    for name, each in processes.items():
        shares = " | ".join(f"{each['cores'][state]:.3f}" for state in states)
        rows.append(f"| `{name}` | {shares} | {each['resident_mb']:.0f} | {each['share_mb']:.0f} |")
    totals = " | ".join(f"{sum(each['cores'][state] for each in processes.values()):.3f}" for state in states)
    share_mb = sum(each["share_mb"] for each in processes.values())
    rows.append(f"| all | {totals} | | {share_mb:.0f} |")
    power = "; ".join(f"{state} {watts(document['power_w'][state])}" for state in states)
    return "\n".join([*rows, "", f"Power of the machine by its own counters: {power}."])
