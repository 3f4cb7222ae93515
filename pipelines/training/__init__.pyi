from .worker import fit as fit
