from .convert import convert_weights as convert_weights
from .errors import WeightsError as WeightsError
from .load import load_weights as load_weights
from .published import PUBLISHED as PUBLISHED
from .published import published_weights as published_weights
from .report import LoadReport as LoadReport
from .report import MismatchError as MismatchError
from .save import save_weights as save_weights
