"""Colours of the page in light and dark, as CSS variables.

The eight colours of categories were searched for: at least 3 to 1 against the page, and apart from each other for
normal sight and for protanopia, deuteranopia and tritanopia (Machado et al. 2009); the tests compute both again.
"""

CATEGORIES = {
    "light": ("#21419a", "#d13a00", "#07a16c", "#985878", "#2574a6", "#283743", "#a08f45", "#720c00"),
    "dark": ("#18b4fe", "#c4941b", "#71ffb0", "#f27eaa", "#bef2ff", "#7b66a8", "#e3f364", "#e32c48"),
}
LEVELS = {
    "light": ("#7d94c4", "#5f7cb5", "#4563a3", "#304b8e", "#1e3576", "#0e205a"),
    "dark": ("#54699a", "#6d86bb", "#8aa4d6", "#a9c1ea", "#cadcf7", "#f0f5ff"),
}
"""Shades of a density, few points to many."""

SURFACES = {
    "light": {"page": "#ffffff", "panel": "#f5f7fa", "rule": "#d3dae3"},
    "dark": {"page": "#15181e", "panel": "#1e232c", "rule": "#3a4350"},
}
TEXTS = {
    "light": {"ink": "#1b232d", "soft": "#4c5867", "link": "#0b57a4"},
    "dark": {"ink": "#e8ecf1", "soft": "#a9b4c2", "link": "#82bdff"},
}
VERDICTS = {
    "light": {"good": "#0b6b45", "doubtful": "#875300", "bad": "#a51d1d", "unknown": "#4c5867"},
    "dark": {"good": "#63d6a2", "doubtful": "#f0b454", "bad": "#ff8f88", "unknown": "#a9b4c2"},
}
THEMES = ("light", "dark")
N_COLOURS, N_LEVELS = len(CATEGORIES["light"]), len(LEVELS["light"])


def css_variables(theme: str) -> str:
    """The declarations of one theme."""
    values = {**SURFACES[theme], **TEXTS[theme], **VERDICTS[theme], "scheme": theme}
    values |= {f"c{k}": colour for k, colour in enumerate(CATEGORIES[theme])}
    values |= {f"d{k}": colour for k, colour in enumerate(LEVELS[theme])}
    return " ".join(f"--{name}: {value};" for name, value in values.items())


def colour_rules() -> str:
    """CSS: the variables for the reader's theme, light on paper, and the classes of marks that use them."""
    rules = [f":root {{ {css_variables('light')} }}"]
    rules.append(f"@media screen and (prefers-color-scheme: dark) {{ :root {{ {css_variables('dark')} }} }}")
    rules += [f".c{k}, .s{k} {{ --colour: var(--c{k}); }}" for k in range(N_COLOURS)]
    rules += [f".d{k} {{ fill: var(--d{k}); }}" for k in range(N_LEVELS)]
    return "\n".join(rules)


def contrast(one: str, other: str) -> float:
    """The contrast ratio of two colours (#rrggbb), from 1 to 21, as WCAG 2 defines it."""
    dark, light = sorted((_luminance(one), _luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def _luminance(colour: str) -> float:
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [each / 12.92 if each <= 0.04045 else ((each + 0.055) / 1.055) ** 2.4 for each in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
