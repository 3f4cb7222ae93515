from .deployments import Back as Back
from .deployments import Front as Front
from .deployments import ServiceLimits as ServiceLimits
