"""RELION's particle files, as ASPIRE sources."""

from aspire_mom.relion.particles import Particles, ParticleSource, read_particles

__all__ = ["ParticleSource", "Particles", "read_particles"]
