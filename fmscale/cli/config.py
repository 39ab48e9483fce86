"""`fmscale config`: the config files themselves, without a run."""

import typer

from fmscale.cli.output import example, print_json

EPILOG = example("fmscale config schema > fmscale.schema.json")
app = typer.Typer(name="config", no_args_is_help=True, help="Write the config files' schema.", epilog=EPILOG)


@app.command(epilog=EPILOG)
def schema() -> None:
    """Write the JSON Schema (draft 2020-12) of config files, by which editors complete, explain and check them.

    An editor with the YAML language server takes it from a file's first line:
    # yaml-language-server: $schema=fmscale.schema.json
    """
    from fmscale.config.reader.json_schema import json_schema

    print_json(json_schema())
