"""The command line, and the only code that prints and exits.

Each verb's module is imported on use, so that a device never loads the export's dependencies.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

import click

from edgekit import __version__
from edgekit.cli.foreign_options import foreign_hint
from edgekit.cli.output import flags_of, print_error
from edgekit.cli.streams import discard_output, flush_output, prepare_streams, system_error
from edgekit.errors import EdgekitError, import_failure

__all__ = ["main"]

_VERBS = {
    "export": ("edgekit.cli.export:export", "Turn a checkpoint into a bundle for a target."),
    "models": ("edgekit.cli.export:models", "List the models edgekit knows by name."),
    "plan": ("edgekit.cli.plan:plan", "Estimate memory and speed of a model on a target, without downloading it."),
    "optimum": ("edgekit.cli.optimum:optimum", "Install Optimum, for architectures edgekit does not support itself."),
    "targets": ("edgekit.cli.device:targets", "List the devices edgekit exports for, or show one."),
    "doctor": ("edgekit.cli.device:doctor", "Identify this machine's target and check what is missing."),
    "info": ("edgekit.cli.bundle:info", "Show a bundle's model, recipe, size, memory and quality."),
    "verify": ("edgekit.cli.bundle:verify", "Check every byte of a bundle; --build also builds it with TensorRT."),
    "build": ("edgekit.cli.build:build", "Build a bundle's TensorRT engine, on the device or for it."),
    "bench": ("edgekit.cli.bench:bench", "Measure a bundle's speed here; --device describes the machine too."),
    "eval": ("edgekit.cli.eval:evaluate", "Measure a bundle's quantization error against its checkpoint."),
    "run": ("edgekit.cli.run:run", "Answer a prompt, or chat, in this terminal."),
    "serve": ("edgekit.cli.serve:serve", "Serve a bundle over HTTP and MQTT."),
    "key": ("edgekit.cli.key:key", "Add, list or revoke the API keys of the daemon on this machine."),
    "ask": ("edgekit.cli.ask:ask", "Send a prompt to a running daemon, over HTTP or MQTT."),
    "service": ("edgekit.cli.service:service", "Install, remove or inspect the system service."),
}


# The extra that a verb's imports need beyond the base install.
_EXTRAS = {
    "export": "export",
    "plan": "export",
    "eval": "export",
    "run": "onnxruntime",
    "bench": "onnxruntime",
    "serve": "daemon",
    "ask": "daemon",
    "verify": "tensorrt-rtx",
    "build": "tensorrt-rtx",
}


class _Verbs(click.Group):
    """A command group that imports a verb's module when the verb is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  click's signature
        return list(_VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002  as above
        if cmd_name not in _VERBS:
            return None
        module, _, attribute = _VERBS[cmd_name][0].partition(":")
        command = getattr(import_module(module), attribute)
        assert isinstance(command, click.Command)  # noqa: S101  a slip in the table above, not a user's mistake
        return command

    def invoke(self, ctx: click.Context) -> Any:
        """Run the verb; print its error with the options that it mentions spelled as the verb's flags."""
        try:
            return super().invoke(ctx)
        except EdgekitError as error:
            verb = self.get_command(ctx, ctx.invoked_subcommand or "")
            print_error(*error.spelled(flags_of(verb or self)))
            ctx.exit(error.exit_status)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002  as above
        with formatter.section("Verbs"):
            formatter.write_dl([(name, text) for name, (_, text) in _VERBS.items()])


@click.group(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="edgekit")
def _cli() -> None:
    """Take a chat model from a checkpoint to an answering edge device."""


def main() -> None:
    """Run the command line and exit: 0 done, 1 failed, 2 wrong command line or configuration, 130 interrupted."""
    prepare_streams()
    status = _run()
    try:
        flush_output()
    except OSError as error:
        discard_output()
        status = status or _report(error)
    sys.exit(status)


def _run() -> int:
    try:
        # A verb's own exit status comes back as the return value.
        return _cli.main(prog_name="edgekit", standalone_mode=False) or 0
    except click.exceptions.Abort:
        return 130
    except KeyboardInterrupt:
        return 130
    except click.ClickException as error:
        hint = None
        if isinstance(error, click.UsageError) and error.ctx is not None:
            hint = _foreign(error) or f"{error.ctx.command_path} --help"
        print_error(error.format_message(), hint)
        return error.exit_code
    except ImportError as error:
        verb = next((word for word in sys.argv[1:] if word in _VERBS), None)
        failure = import_failure(error, _EXTRAS.get(verb or "", "text"))
        if failure is None:
            raise
        print_error(failure.message, failure.hint)
        return failure.exit_status
    except OSError as error:
        discard_output()
        return _report(error)


def _foreign(error: click.UsageError) -> str | None:
    """Return the hint about an option of another program's server."""
    if not isinstance(error, click.NoSuchOption) or error.ctx is None or error.ctx.info_name != "serve":
        return None
    return foreign_hint(error.option_name, sys.argv[2:])


def _report(error: OSError) -> int:
    # The reader of a pipe may have seen enough (`edgekit models | head`).
    if not isinstance(error, BrokenPipeError):
        shown = system_error(error)
        print_error(shown.message, shown.hint)
    return 1
