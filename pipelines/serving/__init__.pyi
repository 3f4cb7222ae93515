from .deployments import Ingress as Ingress
from .deployments import ModelReplica as ModelReplica
from .deployments import ServiceLimits as ServiceLimits
