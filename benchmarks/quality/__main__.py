"""Run the studies: python -m benchmarks.quality."""

from benchmarks.quality.study import main

if __name__ == "__main__":
    main()
