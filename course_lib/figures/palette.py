"""One colour per role throughout the course, and the few others there are."""

from __future__ import annotations

from ..memory.trace import Role

# Checked in the tests: any two differ by at least 20 in CIELAB for normal and for each kind of
# colour-blind sight, and checkpoint, activation and recomputed by at least 40.
COLOURS: dict[Role, str] = {
    Role.PARAMETER: "#343a42",
    Role.BUFFER: "#e0e3e8",
    Role.INPUT: "#757a82",
    Role.OPTIMIZER_STATE: "#a3461a",
    Role.GRADIENT: "#8f50ab",
    Role.CHECKPOINT: "#0b45d9",
    Role.ACTIVATION: "#d98c14",
    Role.RECOMPUTED: "#17c694",
    Role.GATHERED: "#0c0000",
    Role.COMMUNICATION: "#9cfc90",
    Role.TEMPORARY: "#9fc2fb",
    Role.WORKSPACE: "#f8dc3c",
    Role.RANDOM_STATE: "#4b0f73",
    Role.OFFLOADED: "#5787f7",
}


STACK = tuple(COLOURS)  # from the bottom up: what stays first, what comes and goes above it


ROLE_NAMES: dict[Role, tuple[str, str]] = {role: role.names for role in STACK}


PHASE_TINTS = {"forward": "#fbfaf6", "backward": "#f4f0e6", "optimizer step": "#ebe6d8"}


INK, FAINT, GRID = "#22262b", "#6b7178", "#d5d9de"


# Two sides of a comparison, which are no roles. Checked like the roles, and against them.
COMPARED = ("#f06060", "#541800")


CURVE_COLOURS = (INK, *COMPARED, FAINT)
