from .writer import ShardOptions as ShardOptions
from .writer import ShardReport as ShardReport
from .writer import shard_specs as shard_specs
from .writer import write_shard as write_shard
from .writer import write_text as write_text
