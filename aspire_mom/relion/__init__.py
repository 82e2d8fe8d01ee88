"""RELION's particle files, as ASPIRE sources."""

from aspire_mom.relion.particles import Particles, read_particles
from aspire_mom.relion.poses import write_poses
from aspire_mom.relion.source import ParticleSource

__all__ = ["ParticleSource", "Particles", "read_particles", "write_poses"]
