from .comparison import LoadReport as LoadReport
from .comparison import MismatchError as MismatchError
from .load import load_weights as load_weights
from .published import PUBLISHED as PUBLISHED
from .published import published_weights as published_weights
from .save import convert_weights as convert_weights
from .save import save_weights as save_weights
from .untrusted import WeightsError as WeightsError
