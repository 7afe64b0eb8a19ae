"""Laws: checkable properties of algorithms and codecs. Users can check them on their own algorithms as well."""

from typing import TYPE_CHECKING, Any

from jaxdist._former_names import LAWS as FORMER_NAMES
from jaxdist.core.deprecation import former_name
from jaxdist.laws.bytes import Formula as Formula
from jaxdist.laws.bytes import entries as entries
from jaxdist.laws.bytes import sends as sends
from jaxdist.laws.bytes import sends_nothing as sends_nothing
from jaxdist.laws.bytes import sends_parts as sends_parts
from jaxdist.laws.check import check as check
from jaxdist.laws.check import check_entry as check_entry
from jaxdist.laws.check import count_for as count_for
from jaxdist.laws.claims import agrees as agrees
from jaxdist.laws.claims import conserves_feedback as conserves_feedback
from jaxdist.laws.claims import equals as equals
from jaxdist.laws.claims import exact_mean as exact_mean
from jaxdist.laws.claims import keeps_still as keeps_still
from jaxdist.laws.claims import matches_reference as matches_reference
from jaxdist.laws.claims import near_mean as near_mean
from jaxdist.laws.codecs import CodecTrial as CodecTrial
from jaxdist.laws.codecs import contracts as contracts
from jaxdist.laws.codecs import error_at_most as error_at_most
from jaxdist.laws.codecs import idempotent as idempotent
from jaxdist.laws.codecs import takes as takes
from jaxdist.laws.codecs import unbiased_codec as unbiased_codec
from jaxdist.laws.codecs import universal_codec as universal_codec
from jaxdist.laws.declarations import declares as declares
from jaxdist.laws.declarations import rejects as rejects
from jaxdist.laws.gossip import approaches_consensus as approaches_consensus
from jaxdist.laws.gossip import brings_closer as brings_closer
from jaxdist.laws.gossip import follows_mean as follows_mean
from jaxdist.laws.gossip import tracks_mean as tracks_mean
from jaxdist.laws.law import Law as Law
from jaxdist.laws.law import LawBroken as LawBroken
from jaxdist.laws.law import LawResult as LawResult
from jaxdist.laws.law import check_law as check_law
from jaxdist.laws.law import close as close
from jaxdist.laws.law import same_bits as same_bits
from jaxdist.laws.noise import centred as centred
from jaxdist.laws.noise import fresh_keys as fresh_keys
from jaxdist.laws.noise import independent_noise as independent_noise
from jaxdist.laws.noise import unbiased as unbiased
from jaxdist.laws.outcomes import exact_up_to_rank as exact_up_to_rank
from jaxdist.laws.outcomes import keeps as keeps
from jaxdist.laws.outcomes import levels as levels
from jaxdist.laws.outcomes import signs as signs
from jaxdist.laws.staleness import arrives as arrives
from jaxdist.laws.staleness import compensates as compensates
from jaxdist.laws.staleness import delays as delays
from jaxdist.laws.staleness import stale_by as stale_by
from jaxdist.laws.synchronisation import alike_equals_one as alike_equals_one
from jaxdist.laws.synchronisation import conserves_mean as conserves_mean
from jaxdist.laws.synchronisation import conserves_sum as conserves_sum
from jaxdist.laws.synchronisation import synchronises as synchronises
from jaxdist.laws.synchronisation import synchronises_at as synchronises_at
from jaxdist.laws.synchronisation import synchronises_in_turn as synchronises_in_turn
from jaxdist.laws.synchronisation import synchronises_near as synchronises_near
from jaxdist.laws.trial import Path as Path
from jaxdist.laws.trial import Trial as Trial
from jaxdist.laws.trial import mean_rows as mean_rows
from jaxdist.laws.universal import universal as universal
from jaxdist.laws.variance import variance_at_most as variance_at_most

if not TYPE_CHECKING:  # a checker would accept any name of a module with __getattr__

    def __getattr__(name: str) -> Any:
        return former_name(__name__, name, {former: globals()[present] for former, present in FORMER_NAMES.items()})
