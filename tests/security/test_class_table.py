"""What attackers and accidents try, class by class, and which tests hold the answer to it.

SECURITY.md has the same classes with what a client is told. A test that is renamed or removed is missed here.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from functools import cache

import pytest

from tests.conftest import ROOT

CLASSES: Mapping[str, tuple[str, ...]] = {
    "paths": (
        "utils/test_file_handler.py::test_every_odd_path_is_refused_with_one_sentence_that_holds_no_path",
        "utils/test_file_handler.py::test_an_absolute_path_must_lie_under_an_allowed_folder_by_whole_components",
        "utils/test_file_handler.py::test_a_file_below_the_folder_is_read_from_the_descriptor_that_was_checked",
        "utils/test_file_handler.py::test_a_tree_is_removed_without_following_links",
        "web/test_bad_input.py::test_links_and_what_lies_beside_the_allowed_folder_are_refused",
        "web/test_tasks.py::test_an_unknown_and_an_ill_formed_id_are_the_same_404",
        "web/test_tasks.py::test_no_row_is_looked_for_under_an_ill_formed_id",
        "web/test_results.py::test_a_name_that_was_not_published_is_404",
        "web/test_openapi.py::test_no_other_file_is_served_beside_the_page",
        "e2e/test_nginx.py::test_nothing_of_the_folder_can_be_had_from_outside",
        "e2e/test_nginx.py::test_a_symlink_among_the_results_is_not_followed",
        "e2e/test_nginx.py::test_not_even_a_service_gone_wrong_can_send_what_is_beside_the_results",
    ),
    "file names": (
        "utils/test_file_handler.py::test_stored_names_are_the_servers_own_and_never_alike",
        "utils/test_file_handler.py::test_a_suffix_is_a_dot_and_few_plain_letters",
        "web/test_generate.py::test_the_type_of_an_upload_is_what_its_bytes_are",
        "e2e/test_fuzz_api.py::test_forms_of_any_shape_are_refused",
    ),
    "arguments, shell, environment": (
        "engines/test_live_avatar_flags.py::test_a_prompt_arrives_byte_for_byte",
        "engines/test_live_avatar_flags.py::test_a_prompt_arrives_byte_for_byte_through_the_gradio_module",
        "engines/test_live_avatar_flags.py::test_upstream_gets_its_own_environment_and_not_the_services",
        "engines/test_audio_cpp.py::test_a_request_becomes_the_program_s_arguments_and_its_mp4_the_video",
        "engines/test_contract.py::test_the_prompt_is_data_and_the_working_folder_shadows_nothing",
        "tasks/test_engine_process.py::test_only_lines_of_the_contract_count",
        "web/test_bad_input.py::test_a_wrong_field_is_named_and_nothing_is_kept",
        "test_config_loader.py::test_engines_see_an_allow_list_of_the_environment",
        "test_scripts.py::test_a_script_is_clean_and_executable",
    ),
    "URLs": (
        "utils/test_net_urls.py::test_no_special_address_is_public",
        "utils/test_net_urls.py::test_no_notation_of_a_closed_address_passes_as_a_host",
        "utils/test_net_urls.py::test_a_url_of_an_odd_shape_is_refused",
        "utils/test_net_urls.py::test_the_host_header_and_the_request_line_hold_plain_ascii_without_the_default_port",
        "utils/test_net_fetch.py::test_loopback_in_any_notation_gets_no_connection",
        "utils/test_net_fetch.py::test_one_closed_answer_of_the_resolver_refuses_the_name",
        "utils/test_net_fetch.py::test_a_name_is_resolved_once_and_that_answer_is_connected_to",
        "utils/test_net_fetch.py::test_a_redirect_passes_the_same_gate_before_any_connection",
        "utils/test_net_fetch.py::test_a_name_that_changes_its_address_between_hops_is_caught",
        "utils/test_net_fetch.py::test_three_redirects_are_followed_and_a_fourth_is_not",
        "utils/test_net_fetch.py::test_a_certificate_that_is_untrusted_or_anothers_is_refused",
        "web/test_bad_input.py::test_urls_are_refused_where_the_settings_say_so",
        "web/test_bad_input.py::test_a_wrong_field_is_named_and_nothing_is_kept",
        "utils/test_net_post.py::test_loopback_in_any_notation_is_told_nothing",
        "utils/test_net_post.py::test_a_name_with_one_closed_address_is_told_nothing",
        "utils/test_net_post.py::test_a_redirect_is_not_followed",
        "utils/test_net_post.py::test_the_receiver_must_have_a_trusted_certificate_of_its_name",
        "web/test_webhooks.py::test_an_address_that_is_not_public_gets_no_connection_also_where_the_name_changes_its_address",
    ),
    "slow and endless peers": (
        "utils/test_net_fetch.py::test_a_slow_peer_is_left_at_the_total_deadline",
        "utils/test_net_fetch.py::test_an_endless_peer_is_left_soon_at_the_limit_of_received_bytes",
        "utils/test_net_fetch.py::test_a_bad_answer_is_one_line_and_leaves_nothing",
        "utils/test_net_fetch.py::test_a_handshake_that_drips_meets_the_deadline_too",
        "utils/test_net_fetch.py::test_a_resolver_that_hangs_is_left_at_the_deadline",
        "utils/test_net_fetch.py::test_no_thread_or_descriptor_outlives_a_fetch",
        "utils/test_net_post.py::test_a_slow_receiver_is_left_at_the_total_deadline",
        "utils/test_net_post.py::test_an_endless_head_is_left_at_a_limit",
        "web/test_webhooks.py::test_receivers_that_never_answer_delay_nobody_else_s",
        "web/test_places.py::test_slow_urls_of_one_tenant_hold_no_more_than_its_share_of_the_threads",
    ),
    "media": (
        "utils/test_media_hostile.py::test_a_hostile_medium_is_refused_in_one_line_with_its_own_reason",
        "utils/test_media_child.py::test_the_child_can_open_nothing_connect_to_nothing_and_start_nothing",
        "utils/test_media_child.py::test_a_picture_that_needs_too_much_memory_is_refused",
        "utils/test_media_child.py::test_a_picture_that_needs_too_much_processor_is_refused",
        "utils/test_media_child.py::test_a_child_that_hangs_is_killed_with_all_below_it_at_the_deadline",
        "utils/test_media_canonical.py::test_markup_behind_or_inside_a_picture_does_not_travel_on",
        "web/test_bad_input.py::test_a_file_that_no_engine_could_use_is_refused_in_forms_and_uploads_alike",
        "fuzz/test_fuzz.py::test_mutated_media_crash_nothing_hang_nothing_and_pass_no_limit",
    ),
    "JSON": (
        "web/test_bad_input.py::test_a_body_that_is_no_json_object_is_refused",
        "web/test_bad_input.py::test_numbers_that_are_no_integers_are_refused",
        "web/test_bad_input.py::test_unknown_fields_by_the_thousand_are_refused_in_a_short_answer",
        "web/test_bad_input.py::test_another_content_type_is_415",
        "e2e/test_fuzz_api.py::test_bodies_of_any_bytes_are_refused",
        "e2e/test_fuzz_api.py::test_fields_of_any_value_are_refused_or_named",
    ),
    "bodies and connections": (
        "web/test_limits.py::test_a_file_past_its_own_limit_is_413_and_names_the_field",
        "web/test_limits.py::test_more_parts_than_there_are_fields_are_refused",
        "web/test_limits.py::test_a_body_past_its_limit_is_413",
        "web/test_limits.py::test_a_client_that_breaks_off_leaves_nothing",
        "web/test_headers.py::test_a_body_that_drips_is_ended_and_makes_no_task",
        "web/test_waiting.py::test_whoever_finds_no_place_is_answered_at_once",
        "web/test_events.py::test_past_the_places_a_stream_is_503_and_a_place_is_free_once_its_client_has_gone",
        "web/test_events.py::test_a_client_that_reads_nothing_holds_its_place_no_longer_than_two_heartbeats",
        "e2e/test_nginx.py::test_slow_and_greedy_clients_do_not_slow_down_who_behaves",
        "e2e/test_nginx.py::test_a_body_past_the_limit_of_its_route_is_413_before_it_is_sent",
        "e2e/test_nginx.py::test_a_post_that_broke_off_is_not_sent_to_another_upstream",
        "e2e/test_front_door.py::test_the_shipped_service_is_entered_by_its_door_alone",
    ),
    "credentials": (
        "web/test_events.py::test_a_stream_ends_soon_after_its_key_was_revoked",
        "web/test_auth.py::test_every_bad_credential_gets_the_same_401",
        "web/test_auth.py::test_what_the_issuer_did_not_sign_opens_nothing",
        "web/test_auth.py::test_a_key_in_the_query_is_none",
        "web/test_auth.py::test_only_a_hash_of_a_key_is_kept_and_its_use_is_noted",
        "web/test_auth.py::test_a_revoked_and_an_expired_key_open_nothing",
        "web/test_auth.py::test_an_issuer_that_drips_delays_nobody_whose_key_is_known",
        "web/test_auth.py::test_an_issuer_that_drips_is_left_at_the_deadline",
        "e2e/test_front_door.py::test_the_shipped_service_is_entered_by_its_door_alone",
        "web/test_auth.py::test_authentication_without_a_way_in_is_refused_and_each_way_in_is_enough",
        "web/test_auth.py::test_settings_that_let_strangers_in_are_refused_with_what_to_do",
        "web/test_metrics.py::test_with_authentication_on_it_takes_its_own_scope_and_opens_nothing_else",
        "web/test_metrics.py::test_an_address_may_stand_for_a_key_but_not_behind_a_proxy",
        "e2e/test_nginx.py::test_the_metrics_are_not_for_the_world",
    ),
    "tenants": (
        "web/test_metrics.py::test_no_label_is_an_id_or_a_tenant",
        "web/test_auth.py::test_another_tenants_things_are_as_if_they_were_not",
        "web/test_auth.py::test_another_tenants_upload_and_idempotency_key_are_ones_own_to_choose",
        "web/test_tasks.py::test_another_tenants_task_is_a_404_with_the_body_of_an_unknown_one",
        "web/test_events.py::test_another_tenant_s_events_are_unknown_and_a_head_does_not_hang",
        "web/test_auth.py::test_a_link_that_was_changed_opens_nothing",
        "web/test_bad_input.py::test_a_wrong_query_is_named",
        "e2e/test_nginx.py::test_a_result_is_its_owner_s_alone_and_a_signed_link_opens_it",
    ),
    "quotas": (
        "web/test_rate_limits.py::test_a_tenant_is_told_what_is_left_and_then_when_to_come_again",
        "web/test_rate_limits.py::test_a_tenant_with_as_many_waiting_tasks_as_it_may_have_is_refused_and_others_are_not",
        "web/test_rate_limits.py::test_bytes_stored_are_those_of_uploads_and_of_tasks",
        "web/test_rate_limits.py::test_seconds_of_video_are_counted_by_day_and_given_back_for_what_never_started",
        "web/test_limits.py::test_a_tenant_whose_media_take_long_leaves_a_decoder_to_the_others",
        "web/test_waiting.py::test_no_tenant_takes_all_places_from_the_others",
        "web/test_places.py::test_few_may_wait_and_one_tenant_s_do_not_keep_others_from_waiting",
        "web/test_requests.py::test_a_full_queue_says_when_to_come_again",
        "tasks/test_retention.py::test_an_upload_expires_after_its_last_use_and_not_before",
        "tasks/test_fair_order.py::test_a_tenants_many_tasks_delay_anothers_first_by_one",
    ),
    "browser": (
        "web/test_headers.py::test_every_answer_tells_browsers_to_keep_their_hands_off",
        "web/test_headers.py::test_a_page_runs_only_its_own_scripts_and_a_result_none",
        "web/test_headers.py::test_a_page_of_any_other_origin_may_not",
        "web/test_headers.py::test_an_origin_that_is_not_exact_is_refused",
        "web/test_auth.py::test_a_page_of_another_origin_cannot_submit_while_authentication_is_off",
        "web/test_openapi.py::test_the_pages_policy_allows_no_other_host_and_nothing_inline",
    ),
    "resources": (
        "tasks/test_disk.py::test_a_submit_to_a_disk_that_fills_is_refused_or_ends_honestly",
        "tasks/test_disk.py::test_a_task_that_finds_no_room_for_a_file_of_its_own_fails_and_the_next_one_succeeds",
        "web/test_limits.py::test_the_disk_that_is_full_is_507_and_leaves_nothing",
        "web/test_limits.py::test_an_upload_whose_row_cannot_be_written_leaves_no_file",
        "utils/test_file_handler.py::test_used_up_descriptors_are_not_the_callers_fault",
        "tasks/test_retention.py::test_a_clock_that_jumps_stops_the_sweep_until_a_day_after_it_is_right_again",
        "tasks/test_locked.py::test_a_runner_works_on_while_the_database_is_locked_and_tells_its_end_later",
        "web/test_database_trouble.py::test_while_another_process_keeps_the_lock_writing_is_a_503_and_reading_goes_on",
        "utils/test_gpu_probe.py::test_nvml_that_hangs_at_the_start_blocks_nobody_and_is_read_when_it_comes_back",
        "tasks/test_engine_limits.py::test_a_file_past_its_limit_fails_its_task_by_name_and_is_not_called_a_full_disk",
    ),
    "secrets": (
        "e2e/test_secrets.py::test_no_secret_is_told_to_anyone_who_does_not_have_it",
        "web/test_webhooks.py::test_no_secret_and_no_address_is_logged",
        "tasks/test_outbox.py::test_an_error_of_the_database_tells_no_address",
        "tasks/test_outbox.py::test_a_secret_is_in_no_representation",
        "web/test_requests.py::test_each_request_is_one_log_line_without_its_query_and_body",
        "web/test_requests.py::test_a_bug_is_a_500_that_shows_nothing_and_logs_everything",
        "web/test_auth.py::test_health_tells_the_anonymous_nothing_of_the_machine",
        "test_client.py::test_the_key_is_in_no_process_list_and_goes_to_no_other_host",
    ),
    "supply": (
        "test_config_loader.py::test_a_mistake_in_the_table_is_told_by_line_and_key",
        "web/test_bad_input.py::test_a_wrong_field_is_named_and_nothing_is_kept",
        "engines/test_contract.py::test_a_changed_network_is_refused_by_name",
        "test_docs.py::test_all_requirements_are_pinned_and_the_constraints_agree",
    ),
}


@cache
def names_in(module: str) -> frozenset[str]:
    """Return the names of the tests in a module; those that are always skipped are none."""
    tree = ast.parse((ROOT / "tests" / module).read_text())
    found = (node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"))
    return frozenset(
        node.name for node in found if not any(".skip(" in ast.unparse(mark) for mark in node.decorator_list)
    )


@pytest.mark.parametrize("name", CLASSES)
def test_every_class_is_held_by_tests_that_exist(name: str) -> None:
    assert CLASSES[name]
    for held in CLASSES[name]:
        module, _, test = held.partition("::")
        assert test in names_in(module), held


def test_the_classes_are_those_that_are_promised() -> None:
    promised = (ROOT / "SECURITY.md").read_text().split("## What is tried")[1].split("\n## ")[0]
    assert re.findall(r"^\| ([^|]+?) \|", promised, re.MULTILINE)[1:] == list(CLASSES)
