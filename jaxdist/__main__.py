"""`python -m jaxdist`."""

from jaxdist.cli import main

if __name__ == '__main__':
    main()
