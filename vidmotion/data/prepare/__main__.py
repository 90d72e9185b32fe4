"""`python -m vidmotion.data.prepare`."""

import sys

from vidmotion.data.prepare import main

sys.exit(main())
