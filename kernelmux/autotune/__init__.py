"""The tuner: space -> filter -> compile -> rank -> race -> joint solve -> check -> write, one module a step."""
