"""The command line: verbs only; the one place that prints and exits.

Each verb's module is imported when the verb is used, so that a device never loads what only export needs.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module

import click

from edgekit import __version__
from edgekit.cli.output import print_error
from edgekit.errors import EdgekitError, missing_extra

__all__ = ["main"]

_VERBS = {
    "export": ("edgekit.cli.export:export", "Turn a checkpoint into a bundle for a target."),
    "models": ("edgekit.cli.export:models", "List the models edgekit knows by name."),
    "plan": ("edgekit.cli.plan:plan", "Say what a model takes on a target, before anything is downloaded."),
    "optimum": ("edgekit.cli.optimum:optimum", "Install Optimum, for models edgekit itself does not know."),
    "targets": ("edgekit.cli.device:targets", "List the devices edgekit exports for, or show one."),
    "doctor": ("edgekit.cli.device:doctor", "Say which target this machine is and what it lacks."),
    "info": ("edgekit.cli.bundle:info", "Show what a bundle is."),
    "verify": ("edgekit.cli.bundle:verify", "Check every byte of a bundle; --build proves it with NVIDIA's builder."),
    "eval": (
        "edgekit.cli.eval:evaluate",
        "Measure what quantization did to a bundle.",
    ),
    "run": ("edgekit.cli.run:run", "Answer a prompt, or chat, in this terminal."),
    "serve": ("edgekit.cli.serve:serve", "Answer over HTTP and MQTT."),
    "ask": ("edgekit.cli.ask:ask", "Ask a running daemon, over either door."),
    "service": ("edgekit.cli.service:service", "Install, remove or inspect the system service."),
}


# The extra that brings what a verb imports, where the base install lacks it.
_EXTRAS = {
    "export": "export",
    "plan": "export",
    "eval": "export",
    "run": "onnxruntime",
    "serve": "daemon",
    "ask": "daemon",
    "verify": "export",
}


class _Verbs(click.Group):
    """A group that knows its verbs by name and imports one when it is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  click's signature
        return list(_VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002  as above
        if cmd_name not in _VERBS:
            return None
        module, _, attribute = _VERBS[cmd_name][0].partition(":")
        command = getattr(import_module(module), attribute)
        assert isinstance(command, click.Command)  # noqa: S101  a slip in the table above, not a user's mistake
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002  as above
        with formatter.section("Verbs"):
            formatter.write_dl([(name, text) for name, (_, text) in _VERBS.items()])


@click.group(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="edgekit")
def _cli() -> None:
    """Take a chat model from a checkpoint to an answering edge device."""


def main() -> None:
    """Run the command line and exit: 0 done, 1 failed, 2 wrong command line or configuration, 130 interrupted."""
    try:
        # A verb that asks for an exit status of its own gets it returned.
        status = _cli.main(prog_name="edgekit", standalone_mode=False) or 0
    except click.exceptions.Abort:
        status = 130
    except KeyboardInterrupt:
        status = 130
    except click.ClickException as error:
        hint = None
        if isinstance(error, click.UsageError) and error.ctx is not None:
            hint = f"{error.ctx.command_path} --help"
        print_error(error.format_message(), hint)
        status = error.exit_code
    except EdgekitError as error:
        print_error(error.message, error.hint)
        status = error.exit_status
    except ModuleNotFoundError as error:
        verb = next((word for word in sys.argv[1:] if word in _EXTRAS), None)
        if verb is None or error.name is None or error.name.startswith("edgekit"):
            raise
        missing = missing_extra(error.name.partition(".")[0], _EXTRAS[verb])
        print_error(missing.message, missing.hint)
        status = missing.exit_status
    except BrokenPipeError:
        # The reader of our output went away (`edgekit models | head`): nothing to say, and nobody to say it to.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 1
    sys.exit(status)
