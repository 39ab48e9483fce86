"""`fmscale config`: the config files themselves, without a run."""

import typer

from fmscale.cli.output import example, print_json


def register(app: typer.Typer) -> None:
    """Add the group."""
    group = typer.Typer(
        name="config",
        no_args_is_help=True,
        help="Write the config files' schema.",
        epilog=example("fmscale config schema > fmscale.schema.json"),
    )
    group.callback()(lambda: None)  # keeps the only command a command
    group.command(epilog=example("fmscale config schema > fmscale.schema.json"))(schema)
    app.add_typer(group)


def schema() -> None:
    """Write the JSON Schema (draft 2020-12) of config files, by which editors complete, explain and check them.

    An editor with the YAML language server takes it from a file's first line:
    # yaml-language-server: $schema=fmscale.schema.json
    """
    from fmscale.config.reader.json_schema import json_schema

    print_json(json_schema())
