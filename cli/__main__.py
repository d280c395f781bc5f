"""``python -m cli`` is ``mil``."""

from __future__ import annotations

__all__ = ["main"]

_EXIT_INTERRUPTED = 130


def main() -> None:
    """Run the command line; Ctrl-C while it is loaded ends it without a traceback."""
    try:
        from cli.app import main as run

        run()
    except KeyboardInterrupt:
        raise SystemExit(_EXIT_INTERRUPTED) from None


if __name__ == "__main__":
    main()
