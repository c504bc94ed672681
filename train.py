"""Trains a generative model: `python train.py model=began data=celeba`. `python train.py --help` lists the choices."""

from genlab.cli.train import main

if __name__ == "__main__":
    main()
