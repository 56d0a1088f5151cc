"""The console script kubectl_complete-vfio: kubectl runs it for what may follow `kubectl vfio ...`.

Source: kubectl's plugin completion (k8s.io/kubectl/pkg/cmd/plugin/plugin_completion.go): words on stdin's place in the
arguments, one answer a line, then a colon with cobra's directive.
"""

import os
import shlex
import sys

from vfio_cli.__main__ import COMPLETE, PLUGIN, run

NO_FILES = 4  # cobra.ShellCompDirectiveNoFileComp


def main() -> None:
    """Print what may stand in the place of the last argument."""
    words = sys.argv[1:]
    os.environ |= {
        COMPLETE: "complete_bash",
        "COMP_WORDS": shlex.join([PLUGIN, *words]),
        "COMP_CWORD": str(len(words)),
    }
    try:
        run([])
    except SystemExit:  # that is how the completion ends
        pass
    finally:
        print(f":{NO_FILES}")
