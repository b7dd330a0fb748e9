"""A program that prints its arguments as a JSON list: it stands for python in shell scripts."""

import json
import sys

print(json.dumps(sys.argv[1:]))
