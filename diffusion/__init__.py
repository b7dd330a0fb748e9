"""Mathematics without networks: noise schedules, SDEs and their time maps, losses."""
