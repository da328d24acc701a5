"""What the figures of benchmarks/robot.py are called in the documents."""

MEANINGS = {
    "idle_cores": "the busiest node while nothing is asked, share of a core",
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
}
