from .adapters import Adapter as Adapter
from .adapters import combine as combine
from .adapters import compare as compare
from .adapters import load_adapter as load_adapter
from .adapters import save_adapter as save_adapter
from .aging import Edit as Edit
from .aging import Plan as Plan
from .aging import StableDiffusion as StableDiffusion
from .aging import Target as Target
from .aging import age_face as age_face
from .aging import age_to as age_to
from .aging import generate as generate
from .aging import plan_ages as plan_ages
from .aging import prepare as prepare
from .aging import repaint as repaint
from .diffusion import NoiseSchedule as NoiseSchedule
from .diffusion import Sampling as Sampling
from .diffusion import ddim_step as ddim_step
from .diffusion import guided as guided
from .diffusion import noise_prediction_loss as noise_prediction_loss
from .diffusion import sample as sample
from .doors.errors import InputError as InputError
from .nn.attention_maps import recorded_attention as recorded_attention
from .nn.lora import LoRALinear as LoRALinear
from .nn.lora import eject_lora as eject_lora
from .nn.lora import inject_lora as inject_lora

__version__: str
