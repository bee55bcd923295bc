"""`kubectl finetune` as it is installed: says what is missing where the package came without its extra."""

import sys


def main() -> int:
    """Run the plugin; 2 if a package that it needs is not installed."""
    try:
        from finetune_client.plugin import main as run
    except ModuleNotFoundError as error:
        if str(error.name).startswith("finetune_"):
            raise
        install = "pip install 'finetune-operator[client]'"
        told = f"kubectl finetune: the package {error.name} is not installed: {install}"
        print(told, file=sys.stderr)
        return 2
    return run()


if __name__ == "__main__":
    sys.exit(main())
