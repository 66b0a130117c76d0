"""The GPUs that are compiled for, as XLA wants them described."""

from __future__ import annotations

import dataclasses

from jax.experimental import topologies


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Chip:
    """One kind of GPU; the numbers are NVIDIA's.

    Attributes:
      name: as JAX reports the device.
      capability: compute capability.
      accelerated: whether there are features of that capability alone ("sm_90a").
      cores: multiprocessors.
      clock_ghz: boost clock.
      memory: bytes of device memory.
      bandwidth: bytes a second of device memory.
      l2: bytes of level 2 cache.
      shared: bytes of shared memory that one block of threads may have.
    """

    name: str
    capability: tuple[int, int]
    accelerated: bool
    cores: int
    clock_ghz: float
    memory: int
    bandwidth: int
    l2: int
    shared: int

    @property
    def issue_rate(self) -> float:
        """Instructions of warps a second: four a clock and multiprocessor."""
        return self.cores * 4 * self.clock_ghz * 1e9

    @property
    def exponential_rate(self) -> float:
        """Exponentials a second: sixteen a clock and multiprocessor."""
        return self.cores * 16 * self.clock_ghz * 1e9

    @property
    def l2_bandwidth(self) -> float:
        """Bytes a second from the L2 cache: 5120 a clock.

        That is NVIDIA's figure for the A100, taken for the others too, for which there is none.
        """
        return 5120 * self.clock_ghz * 1e9

    @property
    def arch(self) -> str:
        """Name for ptxas."""
        major, minor = self.capability
        return f"sm_{major}{minor}{'a' if self.accelerated else ''}"

    @property
    def description(self) -> str:
        """What XLA compiles for, a GpuTargetConfig."""
        major, minor = self.capability
        feature = "ACCELERATED_FEATURES" if self.accelerated else "NONE"
        return f"""
            gpu_device_info {{
              cuda_compute_capability {{
                major: {major} minor: {minor} feature_extension: {feature}
              }}
              name: "{self.name}" core_count: {self.cores} fpus_per_core: 128
              clock_rate_ghz: {self.clock_ghz} device_memory_size: {self.memory}
              memory_bandwidth: {self.bandwidth} l2_cache_size: {self.l2}
              shared_memory_per_block: 49152 shared_memory_per_block_optin: {self.shared}
              shared_memory_per_core: {self.shared + 1024}
              registers_per_core_limit: 65536 registers_per_block_limit: 65536
              threads_per_warp: 32 threads_per_block_limit: 1024 threads_per_core_limit: 2048
              thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
              block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
            }}
            platform_name: "CUDA" device_description_str: "{self.name}"
            dnn_version_info {{ major: 9 minor: 10 }}
        """

    def topology(self) -> topologies.TopologyDescription:
        """One such GPU."""
        return topologies.get_topology_desc(
            platform="cuda",
            topology_name=self.arch,
            target_config=self.description,
            topology="1x1x1",
        )


CHIPS = {
    "a100": Chip(
        name="NVIDIA A100-SXM4-80GB",
        capability=(8, 0),
        accelerated=False,
        cores=108,
        clock_ghz=1.41,
        memory=85_100_068_864,
        bandwidth=2_039_040_000_000,
        l2=41_943_040,
        shared=166_912,
    ),
    "h100": Chip(
        name="NVIDIA H100 80GB HBM3",
        capability=(9, 0),
        accelerated=True,
        cores=132,
        clock_ghz=1.98,
        memory=84_942_979_072,
        bandwidth=3_352_320_000_000,
        l2=52_428_800,
        shared=232_448,
    ),
    "b200": Chip(
        name="NVIDIA B200",
        capability=(10, 0),
        accelerated=True,
        cores=148,
        clock_ghz=1.965,
        memory=191_514_411_008,
        bandwidth=7_672_320_000_000,
        l2=132_644_864,
        shared=232_448,
    ),
}
