"""The runtime type checker that tests run polytok under: ints pass for floats, as in PEP 484."""

from beartype import BeartypeConf, beartype

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
